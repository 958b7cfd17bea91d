#!/bin/sh
# Writes quirev1/: what clients need of protos/quire/v1. Needs protoc, protoc-gen-go and
# protoc-gen-go-grpc; on Debian: protobuf-compiler protoc-gen-go protoc-gen-go-grpc.
#
#     ./generate.sh            # write beside this file
#     ./generate.sh DIRECTORY  # write into DIRECTORY
set -eu
here=$(cd "$(dirname "$0")" && pwd)
into=${1:-$here/quirev1}
package=quire/clients/go/quirev1
protoc --proto_path="$here/../../protos" \
    --go_out="$into" --go_opt=module="$package" \
    --go_opt=Mquire/v1/sampling.proto="$package" --go_opt=Mquire/v1/inference.proto="$package" \
    --go-grpc_out="$into" --go-grpc_opt=module="$package" \
    --go-grpc_opt=Mquire/v1/sampling.proto="$package" --go-grpc_opt=Mquire/v1/inference.proto="$package" \
    quire/v1/sampling.proto quire/v1/inference.proto
