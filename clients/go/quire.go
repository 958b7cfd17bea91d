// Package quire is a client of a Quire router over gRPC: text, token ids or conversations in,
// text and tokens out, as they are generated.
//
//	client, err := quire.Dial("127.0.0.1:50050")
//	...
//	stream := client.Stream(ctx, quire.Chat(quire.User("Tell me a story.")))
//	defer stream.Close()
//	for stream.Next() {
//		fmt.Print(stream.Chunk().Text)
//	}
//	if err := stream.Err(); err != nil {
//		...
//	}
//
// Cancelling the context, or closing the stream, ends the request: the server computes nothing more
// for it. Errors are of type *Error: status.Code tells them apart, and their messages name the
// field, the limit and the value.
package quire

import (
	"context"
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"quire/clients/go/quirev1"
)

// DefaultMaxRetries on top of the first attempt, 50 ms to 2 s apart.
const DefaultMaxRetries = 29

const maxMessageBytes = 64 << 20

// Client of one router. Any number of goroutines may use it.
type Client struct {
	conn       *grpc.ClientConn
	rpc        quirev1.InferenceServiceClient
	router     *acquaintance
	apiKey     string
	maxRetries int
}

// Option of Dial.
type Option func(*settings)

type settings struct {
	apiKey     string
	maxRetries int
	waits      bool
	dial       []grpc.DialOption
	security   grpc.DialOption
}

// WithAPIKey sends the key that the router was started with.
func WithAPIKey(key string) Option {
	return func(s *settings) { s.apiKey = key }
}

// WithMaxRetries sets how often a call is tried again that found the router busy or gone, while
// nothing of its answer has come. 0: never.
func WithMaxRetries(n int) Option {
	return func(s *settings) { s.maxRetries = n }
}

// WithWaitForReady makes calls wait for a router that is not there, or not ready, as long as their
// contexts allow; without it, a call that finds nobody at an address where nobody has ever answered
// fails within two seconds.
func WithWaitForReady() Option {
	return func(s *settings) { s.waits = true }
}

// WithTLS speaks TLS, to a router that was started with --ssl-certfile, or to a proxy. An empty
// config is for a certificate of a public authority; RootCAs in it are for one of your own.
func WithTLS(config *tls.Config) Option {
	return func(s *settings) { s.security = grpc.WithTransportCredentials(credentials.NewTLS(config)) }
}

// WithDialOptions adds options of gRPC.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// Dial makes a client of the router at target, "host:port" or "unix:///path". It connects when
// first needed.
func Dial(target string, options ...Option) (*Client, error) {
	s := settings{
		maxRetries: DefaultMaxRetries,
		dial:       append(defaultDialOptions(), habits()...),
		security:   plain(),
	}
	for _, option := range options {
		option(&s)
	}
	conn, err := dial(target, append(s.dial, s.security)...)
	if err != nil {
		return nil, err
	}
	rpc := quirev1.NewInferenceServiceClient(conn)
	router := &acquaintance{target: target, waits: s.waits}
	return &Client{conn: conn, rpc: rpc, router: router, apiKey: s.apiKey, maxRetries: s.maxRetries}, nil
}

// habits of every connection: a router that is started now is met soon, and one whose machine is
// gone is noticed within twenty seconds.
func habits() []grpc.DialOption {
	again := backoff.DefaultConfig
	again.BaseDelay, again.MaxDelay = 100*time.Millisecond, lastBackoff
	return []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 10 * time.Second,
		}),
	}
}

// Close ends what is in flight.
func (c *Client) Close() error {
	return c.conn.Close()
}

// Tokenize says the token ids of a raw prompt, with what the model puts around one.
func (c *Client) Tokenize(ctx context.Context, text string) ([]uint32, error) {
	request := &quirev1.TokenizeRequest{Text: text, AddSpecialTokens: true}
	var answer *quirev1.TokenizeResponse
	err := c.ask(ctx, func(ctx context.Context, trailer grpc.CallOption) (err error) {
		answer, err = c.rpc.Tokenize(ctx, request, trailer)
		return err
	})
	return answer.GetTokenIds(), err
}

// Detokenize says the text of token ids, special tokens included.
func (c *Client) Detokenize(ctx context.Context, tokenIDs []uint32) (string, error) {
	request := &quirev1.DetokenizeRequest{TokenIds: tokenIDs}
	var answer *quirev1.DetokenizeResponse
	err := c.ask(ctx, func(ctx context.Context, trailer grpc.CallOption) (err error) {
		answer, err = c.rpc.Detokenize(ctx, request, trailer)
		return err
	})
	return answer.GetText(), err
}

// Models says what may be asked for.
func (c *Client) Models(ctx context.Context) ([]*quirev1.Model, error) {
	var answer *quirev1.ListModelsResponse
	err := c.ask(ctx, func(ctx context.Context, trailer grpc.CallOption) (err error) {
		answer, err = c.rpc.ListModels(ctx, &quirev1.ListModelsRequest{}, trailer)
		return err
	})
	return answer.GetModels(), err
}

// ask makes a call until it succeeds or another attempt cannot help.
func (c *Client) ask(
	ctx context.Context, call func(context.Context, grpc.CallOption) error,
) error {
	attempts := c.attempts()
	for {
		var trailer metadata.MD
		err := call(c.outgoing(ctx), grpc.Trailer(&trailer))
		if err == nil {
			attempts.succeeded()
			return nil
		}
		if failed := errorOf(err, trailer); !attempts.wait(ctx, failed) {
			return failed
		}
	}
}

func (c *Client) outgoing(ctx context.Context) context.Context {
	if c.apiKey == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.apiKey)
}
