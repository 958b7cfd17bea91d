package quire

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/metadata"

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
	ended    bool
	failed   *Error
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
		attempts: c.attempts(),
	}
}

// Next waits for a chunk. False: the stream has ended, and Err says whether well.
func (s *Stream) Next() bool {
	for !s.ended {
		chunk, err := s.receive()
		if err == nil {
			s.attempts.final = true
			s.attempts.succeeded()
			s.chunk = chunk
			return true
		}
		if failed := s.failure(err); failed == nil || !s.attempts.wait(s.ctx, failed) {
			s.failed, s.ended = failed, true
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
	if s.failed == nil {
		return nil
	}
	return s.failed
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

// failure says what an error means; nil: the stream has ended well.
func (s *Stream) failure(err error) *Error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	var trailer metadata.MD
	if s.call != nil {
		trailer = s.call.Trailer()
	}
	return errorOf(err, trailer)
}

// Sample is one complete answer.
type Sample struct {
	// Text; of a conversation, what is neither thought nor call.
	Text string
	// Reasoning: of a conversation, what the model thought before it answered.
	Reasoning string
	// ToolCalls: of a conversation, what it asks for.
	ToolCalls []*quirev1.ToolCall
	TokenIDs  []uint32
	// Logprobs: one per token, if asked for.
	Logprobs     []TokenLogprobs
	FinishReason quirev1.FinishReason
	// StopText, or StopTokenID, is what of the request's own ended it, if that did.
	StopText    string
	StopTokenID *uint32
	Usage       *quirev1.Usage
	// PromptTokenIDs and PromptLogprobs, of the first sample, if asked for; the latter begin with the
	// prompt's second token.
	PromptTokenIDs []uint32
	PromptLogprobs []TokenLogprobs
}

// Message is the answer as the next turn of its conversation.
func (s *Sample) Message() *quirev1.ChatMessage {
	message := Assistant(s.Text)
	message.ToolCalls = s.ToolCalls
	if s.Reasoning != "" {
		message.Reasoning = &s.Reasoning
	}
	return message
}

// add what a chunk says.
func (s *Sample) add(chunk *Chunk) {
	s.Text += chunk.GetText()
	s.Reasoning += chunk.GetReasoning()
	s.ToolCalls = addCalls(s.ToolCalls, chunk.GetToolCalls())
	s.TokenIDs = append(s.TokenIDs, chunk.GetTokenIds()...)
	s.Logprobs = append(s.Logprobs, Logprobs(chunk.GetLogprobs(), chunk.GetTokenIds())...)
	if ids := chunk.GetPromptTokenIds(); len(ids) > 0 {
		s.PromptTokenIDs = ids
		s.PromptLogprobs = Logprobs(chunk.GetPromptLogprobs(), ids[1:])
	}
	if chunk.GetUsage() != nil {
		s.FinishReason, s.Usage = chunk.GetFinishReason(), chunk.GetUsage()
		s.StopText = chunk.GetStopText()
		if stop, ok := chunk.GetStopReason().(*quirev1.GenerateResponse_StopTokenId); ok {
			s.StopTokenID = &stop.StopTokenId
		}
	}
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
		samples[chunk.Index].add(chunk)
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return samples, nil
}
