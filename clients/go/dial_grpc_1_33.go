//go:build grpc_1_33

// Debian 12 packages gRPC 1.33 beside protobuf 1.28, which that gRPC does not know how to encode:
// it gets a codec that does. Nobody else needs this file.

package quire

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

func plain() grpc.DialOption {
	return grpc.WithInsecure()
}

func defaultDialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}))}
}

func dial(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.Dial(target, options...)
}

type codec struct{}

func (codec) Marshal(message interface{}) ([]byte, error) {
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(data []byte, message interface{}) error {
	return proto.Unmarshal(data, message.(proto.Message))
}

func (codec) Name() string { return "proto" }
