//go:build !grpc_1_33

package quire

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func plain() grpc.DialOption {
	return grpc.WithTransportCredentials(insecure.NewCredentials())
}

func defaultDialOptions() []grpc.DialOption {
	return nil
}

func dial(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, options...)
}
