package quire

import (
	"context"
	"encoding/binary"
	"math"

	"google.golang.org/grpc"

	"quire/clients/go/quirev1"
)

// EmbedRequest asks for vectors. Make its inputs with Texts or TokenLists.
type EmbedRequest struct {
	// Inputs: at least one.
	Inputs []*quirev1.EmbedInput
	// Dimensions of each vector to keep, the first ones, of models that were trained for it; 0: all.
	Dimensions uint32
	// Model may be left empty where one is served.
	Model string
	// Priority: lower is sooner; 0 is normal.
	Priority int32
	// CacheSalt: cached prefixes are shared among requests of the same salt.
	CacheSalt string
}

// Texts are inputs to be embedded.
func Texts(texts ...string) []*quirev1.EmbedInput {
	inputs := make([]*quirev1.EmbedInput, len(texts))
	for i, text := range texts {
		inputs[i] = &quirev1.EmbedInput{Input: &quirev1.EmbedInput_Text{Text: text}}
	}
	return inputs
}

// TokenLists are inputs to be embedded as they are.
func TokenLists(lists ...[]uint32) []*quirev1.EmbedInput {
	inputs := make([]*quirev1.EmbedInput, len(lists))
	for i, ids := range lists {
		tokens := &quirev1.EmbedInput_Tokens{Tokens: &quirev1.TokenIds{Ids: ids}}
		inputs[i] = &quirev1.EmbedInput{Input: tokens}
	}
	return inputs
}

// Embed returns one vector per input, in order; each has length 1.
func (c *Client) Embed(ctx context.Context, request EmbedRequest) ([][]float32, error) {
	message := &quirev1.EmbedRequest{
		Model:     request.Model,
		Inputs:    request.Inputs,
		Priority:  request.Priority,
		CacheSalt: request.CacheSalt,
	}
	if request.Dimensions > 0 {
		message.Dimensions = &request.Dimensions
	}
	var answer *quirev1.EmbedResponse
	err := c.ask(ctx, func(ctx context.Context, trailer grpc.CallOption) (err error) {
		answer, err = c.rpc.Embed(ctx, message, trailer)
		return err
	})
	if err != nil {
		return nil, err
	}
	vectors := make([][]float32, len(answer.GetEmbeddings()))
	for i, embedding := range answer.GetEmbeddings() {
		vectors[i] = float32s(embedding.GetVector())
	}
	return vectors, nil
}

// float32s of a column.
func float32s(column []byte) []float32 {
	values := make([]float32, len(column)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(column[4*i:]))
	}
	return values
}
