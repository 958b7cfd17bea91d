package quire

import (
	"context"
	"errors"
	"io"

	"quire/clients/go/quirev1"
)

// Chunk is news of one sample: text and token ids since its last chunk; the last one of a sample
// has a finish reason and what it cost.
type Chunk = quirev1.GenerateResponse

// Stream of one request's chunks. One goroutine reads it; Close may come from any.
type Stream struct {
	client   *Client
	ctx      context.Context
	cancel   context.CancelFunc
	request  *quirev1.GenerateRequest
	attempts attempts
	call     quirev1.InferenceService_GenerateClient
	chunk    *Chunk
	err      error
}

// Stream sends a request when its first chunk is asked for. Close the stream, or cancel ctx.
func (c *Client) Stream(ctx context.Context, request Request) *Stream {
	return c.stream(ctx, request, false)
}

func (c *Client) stream(ctx context.Context, request Request, whole bool) *Stream {
	ctx, cancel := context.WithCancel(c.outgoing(ctx))
	return &Stream{
		client:   c,
		ctx:      ctx,
		cancel:   cancel,
		request:  request.message(whole),
		attempts: attempts{left: c.maxRetries},
	}
}

// Next waits for a chunk. False: the stream has ended, and Err says whether well.
func (s *Stream) Next() bool {
	for s.err == nil {
		chunk, err := s.receive()
		if err == nil {
			s.attempts.final = true
			s.chunk = chunk
			return true
		}
		if errors.Is(err, io.EOF) || !s.attempts.wait(s.ctx, err, s.trailer()) {
			s.err = err
			s.cancel()
			break
		}
		s.call = nil
	}
	s.chunk = nil
	return false
}

// Chunk that the last Next waited for.
func (s *Stream) Chunk() *Chunk {
	return s.chunk
}

// Err says why the stream ended; nil if every sample was complete, or while it goes on.
func (s *Stream) Err() error {
	if errors.Is(s.err, io.EOF) {
		return nil
	}
	return s.err
}

// Close ends the request; harmless when it has ended.
func (s *Stream) Close() {
	s.cancel()
}

func (s *Stream) receive() (*Chunk, error) {
	if s.call == nil {
		call, err := s.client.rpc.Generate(s.ctx, s.request)
		if err != nil {
			return nil, err
		}
		s.call = call
	}
	return s.call.Recv()
}

func (s *Stream) trailer() map[string][]string {
	if s.call == nil {
		return nil
	}
	return s.call.Trailer()
}

// Sample is one complete answer.
type Sample struct {
	Text         string
	TokenIDs     []uint32
	FinishReason quirev1.FinishReason
	Usage        *quirev1.Usage
}

// Generate returns all samples of a request, when all have ended.
func (c *Client) Generate(ctx context.Context, request Request) ([]Sample, error) {
	stream := c.stream(ctx, request, true)
	defer stream.Close()
	var samples []Sample
	for stream.Next() {
		chunk := stream.Chunk()
		for int(chunk.Index) >= len(samples) {
			samples = append(samples, Sample{})
		}
		sample := &samples[chunk.Index]
		sample.Text += chunk.Text
		sample.TokenIDs = append(sample.TokenIDs, chunk.TokenIds...)
		if chunk.Usage != nil {
			sample.FinishReason, sample.Usage = chunk.FinishReason, chunk.Usage
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return samples, nil
}
