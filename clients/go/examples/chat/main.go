// Chat asks a Quire router one question and prints the answer as it comes; Ctrl-C ends it.
//
//	go run ./examples/chat -target 127.0.0.1:50050 "What is the capital of France?"
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"google.golang.org/protobuf/proto"

	quire "quire/clients/go"
	"quire/clients/go/quirev1"
)

func main() {
	target := flag.String("target", "127.0.0.1:50050", "gRPC address of the router")
	maxTokens := flag.Uint("max-tokens", 256, "tokens of the answer, at most")
	temperature := flag.Float64("temperature", 0.7, "0 is greedy")
	flag.Parse()
	question := strings.Join(flag.Args(), " ")
	if question == "" {
		question = "What is the capital of France?"
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	if err := chat(ctx, *target, question, uint32(*maxTokens), float32(*temperature)); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func chat(ctx context.Context, target, question string, maxTokens uint32, temperature float32) error {
	client, err := quire.Dial(target, quire.WithAPIKey(os.Getenv("QUIRE_API_KEY")))
	if err != nil {
		return err
	}
	defer client.Close()

	request := quire.Chat(quire.User(question))
	request.Sampling = &quirev1.SamplingOptions{
		MaxTokens:   proto.Uint32(maxTokens),
		Temperature: proto.Float32(temperature),
	}
	stream := client.Stream(ctx, request)
	defer stream.Close()
	for stream.Next() {
		fmt.Print(stream.Chunk().Text)
	}
	fmt.Println()
	return stream.Err()
}
