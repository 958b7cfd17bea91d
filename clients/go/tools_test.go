package quire_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"regexp"
	"testing"

	"google.golang.org/protobuf/proto"

	quire "quire/clients/go"
	"quire/clients/go/quirev1"
)

const weather = `{
	"type": "object",
	"properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
	"required": ["city"],
	"additionalProperties": false
}`

func TestACallGoesToTheClientAndItsResultBack(t *testing.T) {
	client, ctx := served(t)
	chat := &quirev1.ChatPrompt{
		Messages:          []*quirev1.ChatMessage{quire.User("What is the weather in Rome?")},
		Tools:             []*quirev1.Tool{quire.Function("weather", "Tells the weather.", weather)},
		ToolChoice:        quire.CallAny(),
		ParallelToolCalls: proto.Bool(false),
	}
	request := quire.ChatWith(chat)
	request.Sampling = &quirev1.SamplingOptions{
		Temperature: proto.Float32(1), Seed: proto.Uint64(4), MaxTokens: proto.Uint32(200),
	}
	samples, err := client.Generate(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if len(samples[0].ToolCalls) != 1 || samples[0].Text != "" {
		t.Fatalf("%+v", samples[0])
	}
	call := samples[0].ToolCalls[0]
	var arguments struct{ City string }
	if err := json.Unmarshal([]byte(call.GetArguments()), &arguments); err != nil {
		t.Fatal(err)
	}
	if call.GetName() != "weather" || (arguments.City != "Paris" && arguments.City != "Rome") {
		t.Errorf("%v", call)
	}
	streamed := ""
	stream := client.Stream(ctx, request)
	for stream.Next() {
		for _, delta := range stream.Chunk().GetToolCalls() {
			streamed += delta.GetArguments()
		}
	}
	if stream.Err() != nil || streamed != call.GetArguments() {
		t.Errorf("%q, %v", streamed, stream.Err())
	}
	result := quire.ToolResult(call.GetId(), "sunny")
	chat.Messages = append(chat.Messages, samples[0].Message(), result)
	chat.ToolChoice = quire.CallNone()
	request.Sampling = greedy(16)
	samples, err = client.Generate(ctx, request)
	if err != nil || samples[0].Text == "" || len(samples[0].ToolCalls) != 0 {
		t.Errorf("%+v, %v", samples, err)
	}
}

func TestOutputsHaveTheirStructure(t *testing.T) {
	client, ctx := served(t)
	for pattern, grammar := range map[string]*quirev1.Grammar{
		`^[a-c]{3,5}$`:   quire.Regex("[a-c]{3,5}"),
		`^(yes|no)$`:     quire.Choice("yes", "no"),
		`^<[0-9]{1,4}>$`: quire.Lark(`start: "<" /[0-9]{1,4}/ ">"`),
		`^\{\s*"city"\s*:\s*"(Paris|Rome)"\s*\}$`: quire.JSONSchema(weather),
	} {
		for _, request := range []quire.Request{
			quire.Text("Answer: "), quire.Chat(quire.User("Well?")),
		} {
			request.Sampling = &quirev1.SamplingOptions{
				Grammar: grammar, N: proto.Uint32(3), Seed: proto.Uint64(1), MaxTokens: proto.Uint32(200),
			}
			samples, err := client.Generate(ctx, request)
			if err != nil {
				t.Fatal(err)
			}
			for _, sample := range samples {
				ended := sample.FinishReason == quirev1.FinishReason_FINISH_REASON_STOP
				if ended && !regexp.MustCompile(pattern).MatchString(sample.Text) {
					t.Errorf("%s: %q", pattern, sample.Text)
				}
			}
		}
	}
}

func TestEmbed(t *testing.T) {
	client, ctx := served(t)
	texts := []string{"A river runs through the city.", "東京 is a city."}
	vectors, err := client.Embed(ctx, quire.EmbedRequest{Inputs: quire.Texts(texts...)})
	if err != nil {
		t.Fatal(err)
	}
	ids, err := client.Tokenize(ctx, texts[1])
	if err != nil {
		t.Fatal(err)
	}
	again, err := client.Embed(ctx, quire.EmbedRequest{Inputs: quire.TokenLists(ids)})
	if err != nil {
		t.Fatal(err)
	}
	if len(vectors) != 2 || len(again) != 1 || math.Abs(dot(vectors[1], again[0])-1) > 1e-4 {
		t.Errorf("%d and %d vectors", len(vectors), len(again))
	}
	if length := dot(vectors[0], vectors[0]); math.Abs(length-1) > 1e-4 {
		t.Errorf("its length is %v", length)
	}
	_, err = client.Embed(ctx, quire.EmbedRequest{Inputs: quire.Texts("x"), Dimensions: 3})
	var failed *quire.Error
	if !errors.As(err, &failed) || failed.Field != "dimensions" {
		t.Error(err)
	}
}

func dot(a, b []float32) (sum float64) {
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

func TestAPromptIsScored(t *testing.T) {
	client, ctx := served(t)
	request := quire.Text("The capital of France is Paris")
	request.Sampling = &quirev1.SamplingOptions{
		MaxTokens: proto.Uint32(0), NumPromptLogprobs: proto.Uint32(2),
	}
	samples, err := client.Generate(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	scored := samples[0]
	if scored.Text != "" || len(scored.TokenIDs) != 0 || len(scored.PromptTokenIDs) == 0 {
		t.Fatalf("%+v", scored)
	}
	if len(scored.PromptLogprobs) != len(scored.PromptTokenIDs)-1 {
		t.Fatalf("%+v", scored)
	}
	last := scored.PromptLogprobs[len(scored.PromptLogprobs)-1]
	if last.Chosen.Rank != 1 || last.Top[0] != last.Chosen || len(last.Top) != 2 {
		t.Errorf("%+v", last)
	}
	generate := quire.Text("The capital of France is")
	generate.Sampling = greedy(3)
	generate.Sampling.NumLogprobs = proto.Uint32(1)
	samples, err = client.Generate(ctx, generate)
	if err != nil {
		t.Fatal(err)
	}
	first := samples[0].Logprobs[0]
	if len(samples[0].Logprobs) != 3 || first.Chosen.TokenID != last.Chosen.TokenID {
		t.Errorf("%+v and %+v", samples[0].Logprobs, last)
	}
	if math.Abs(float64(first.Chosen.Value-last.Chosen.Value)) > 1e-3 {
		t.Errorf("%v and %v", first, last)
	}
}

func TestErrorsAreTyped(t *testing.T) {
	client, ctx := served(t)
	var failed *quire.Error
	_, err := client.Generate(ctx, quire.Tokens(make([]uint32, 5000)))
	const tooLong = quirev1.ErrorCode_ERROR_CODE_CONTEXT_LENGTH_EXCEEDED
	if !errors.As(err, &failed) || failed.Reason != tooLong || failed.Field != "tokens" {
		t.Errorf("%+v", failed)
	}
	if failed.Retryable {
		t.Error("a prompt that is too long is not worth another attempt")
	}
	request := quire.Chat(&quirev1.ChatMessage{Role: "robot"})
	const invalid = quirev1.ErrorCode_ERROR_CODE_INVALID_REQUEST
	_, err = client.Generate(ctx, request)
	if !errors.As(err, &failed) || failed.Reason != invalid || failed.Field != "chat.messages[0].role" {
		t.Errorf("%+v", failed)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err = client.Models(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("no deadline has passed")
	}
}

func TestWhatStoppedASampleIsTold(t *testing.T) {
	client, ctx := served(t)
	request := quire.Text("The capital of France is")
	request.Sampling = greedy(12)
	request.Sampling.Stop = []string{"Paris"}
	samples, err := client.Generate(ctx, request)
	if err != nil || samples[0].StopText != "Paris" || samples[0].StopTokenID != nil {
		t.Fatalf("%+v, %v", samples, err)
	}
	stop := samples[0].TokenIDs[0]
	request.Sampling = greedy(12)
	request.Sampling.StopTokenIds = []uint32{stop}
	samples, err = client.Generate(ctx, request)
	if err != nil || samples[0].StopText != "" || *samples[0].StopTokenID != stop {
		t.Errorf("%+v, %v", samples, err)
	}
}
