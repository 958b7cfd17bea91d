package quire_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	quire "quire/clients/go"
	"quire/clients/go/quirev1"
)

// served is a client of the router at QUIRE_TARGET, started with the key QUIRE_API_KEY.
func served(t *testing.T, options ...quire.Option) (*quire.Client, context.Context) {
	target := os.Getenv("QUIRE_TARGET")
	if target == "" {
		t.Skip("QUIRE_TARGET names no router")
	}
	options = append([]quire.Option{quire.WithAPIKey(os.Getenv("QUIRE_API_KEY"))}, options...)
	client, err := quire.Dial(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return client, ctx
}

func greedy(maxTokens uint32) *quirev1.SamplingOptions {
	return &quirev1.SamplingOptions{
		Temperature: proto.Float32(0),
		MaxTokens:   proto.Uint32(maxTokens),
		IgnoreEos:   true,
	}
}

func TestTextTokensAndConversations(t *testing.T) {
	client, ctx := served(t)
	const prompt = "The capital of France is"
	ids, err := client.Tokenize(ctx, prompt)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := client.Detokenize(ctx, ids); err != nil || text != prompt {
		t.Errorf("%q, %v", text, err)
	}
	for _, request := range []quire.Request{
		quire.Text(prompt), quire.Tokens(ids), quire.Chat(quire.User("What is the capital of France?")),
	} {
		request.Sampling = greedy(12)
		samples, err := client.Generate(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		if len(samples) != 1 || !strings.Contains(samples[0].Text, "Paris") {
			t.Errorf("%+v", samples)
		}
		if samples[0].Usage.NumOutputTokens != 12 || len(samples[0].TokenIDs) != 12 {
			t.Errorf("%+v", samples[0])
		}
	}
	models, err := client.Models(ctx)
	if err != nil || len(models) != 1 || models[0].MaxModelLen == 0 {
		t.Errorf("%v, %v", models, err)
	}
}

func TestAStreamAddsUpToTheWholeAnswer(t *testing.T) {
	client, ctx := served(t)
	request := quire.Chat(quire.System("You are brief."), quire.User("Who are you?"))
	request.Sampling = &quirev1.SamplingOptions{
		N: proto.Uint32(2), Seed: proto.Uint64(5), MaxTokens: proto.Uint32(16),
	}
	samples, err := client.Generate(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	texts, chunks := make([]string, 2), 0
	stream := client.Stream(ctx, request)
	defer stream.Close()
	for stream.Next() {
		texts[stream.Chunk().Index] += stream.Chunk().Text
		chunks++
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if texts[0] != samples[0].Text || texts[1] != samples[1].Text || chunks <= 2 {
		t.Errorf("%q and %+v in %d chunks", texts, samples, chunks)
	}
}

func TestCancellingTheContextEndsAStream(t *testing.T) {
	client, ctx := served(t)
	ctx, cancel := context.WithCancel(ctx)
	request := quire.Text("Once upon a time")
	request.Sampling = greedy(900)
	stream := client.Stream(ctx, request)
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	cancel()
	for stream.Next() {
	}
	if code := status.Code(stream.Err()); code != codes.Canceled {
		t.Error(stream.Err())
	}
}

func TestADeadlineEndsARequest(t *testing.T) {
	client, ctx := served(t)
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	request := quire.Text("Once upon a time")
	request.Sampling = greedy(900)
	if _, err := client.Generate(ctx, request); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
}

func TestErrorsHaveTheirCodes(t *testing.T) {
	client, ctx := served(t)
	tooLong := quire.Tokens(make([]uint32, 5000))
	_, err := client.Generate(ctx, tooLong)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "5000 tokens") {
		t.Error(err)
	}
	elsewhere := quire.Text("x")
	elsewhere.Model = "gpt-5"
	if _, err := client.Generate(ctx, elsewhere); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	if _, err := client.Generate(ctx, quire.Request{}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	stranger, ctx := served(t, quire.WithAPIKey("wrong"))
	if _, err := stranger.Models(ctx); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}

func TestNobodyThereIsToldWhenAttemptsAreSpent(t *testing.T) {
	client, err := quire.Dial("127.0.0.1:1", quire.WithMaxRetries(2))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	began := time.Now()
	if _, err := client.Models(context.Background()); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	if waited := time.Since(began); waited < firstTwoPauses {
		t.Errorf("gave up after %v", waited)
	}
}

const firstTwoPauses = (50 + 100) * time.Millisecond

func TestNobodyAtAStrangeAddressIsToldSoon(t *testing.T) {
	client, err := quire.Dial("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	began := time.Now()
	stream := client.Stream(context.Background(), quire.Text("x"))
	if stream.Next() {
		t.Error(stream.Chunk())
	}
	var failed *quire.Error
	if !errors.As(stream.Err(), &failed) || failed.Code != codes.Unavailable || !failed.Retryable {
		t.Error(stream.Err())
	}
	const told = "no answer from the router at 127.0.0.1:1: "
	if !strings.HasPrefix(failed.Message, told) {
		t.Error(failed.Message)
	}
	if waited := time.Since(began); waited > 20*time.Second { // of all attempts it would be a minute
		t.Errorf("gave up after %v", waited)
	}
}
