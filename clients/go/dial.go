//go:build !grpc_1_33

package quire

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func defaultDialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
}

func dial(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, options...)
}
