// Tools lets the model call a function of this program, and answer with what that returned. The
// model's chat template has to know tools:
//
//	quire serve smollm2 --chat-template hermes
//	go run ./examples/tools -target 127.0.0.1:50050 "What is 1234 times 5678?"
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"google.golang.org/protobuf/proto"

	quire "quire/clients/go"
	"quire/clients/go/quirev1"
)

const parameters = `{
	"type": "object",
	"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
	"required": ["a", "b"],
	"additionalProperties": false
}`

// multiply is what the model may call.
func multiply(arguments string) string {
	var factors struct{ A, B int64 }
	if err := json.Unmarshal([]byte(arguments), &factors); err != nil {
		return "error: " + err.Error()
	}
	return fmt.Sprint(factors.A * factors.B)
}

func main() {
	target := flag.String("target", "127.0.0.1:50050", "gRPC address of the router")
	flag.Parse()
	question := strings.Join(flag.Args(), " ")
	if question == "" {
		question = "What is 1234 times 5678?"
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	if err := answer(ctx, *target, question); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		var failed *quire.Error
		if errors.As(err, &failed) && strings.HasPrefix(failed.Field, "chat.tools") {
			fmt.Fprintln(os.Stderr, "the model's chat template knows no tools; for ChatML: quire serve MODEL --chat-template hermes")
		}
		os.Exit(1)
	}
}

func answer(ctx context.Context, target, question string) error {
	client, err := quire.Dial(target, quire.WithAPIKey(os.Getenv("QUIRE_API_KEY")))
	if err != nil {
		return err
	}
	defer client.Close()

	chat := &quirev1.ChatPrompt{
		Messages:   []*quirev1.ChatMessage{quire.User(question)},
		Tools:      []*quirev1.Tool{quire.Function("multiply", "Multiplies two integers.", parameters)},
		ToolChoice: quire.CallNamed("multiply"),
	}
	request := quire.ChatWith(chat)
	request.Sampling = &quirev1.SamplingOptions{
		Temperature: proto.Float32(0), MaxTokens: proto.Uint32(256),
	}
	asked, err := client.Generate(ctx, request)
	if err != nil {
		return err
	}
	chat.Messages = append(chat.Messages, asked[0].Message())
	for _, call := range asked[0].ToolCalls {
		result := multiply(call.GetArguments())
		fmt.Printf("%s(%s) = %s\n", call.GetName(), call.GetArguments(), result)
		chat.Messages = append(chat.Messages, quire.ToolResult(call.GetId(), result))
	}
	chat.ToolChoice = quire.CallNone()
	stream := client.Stream(ctx, request)
	defer stream.Close()
	for stream.Next() {
		fmt.Print(stream.Chunk().GetText())
	}
	fmt.Println()
	return stream.Err()
}
