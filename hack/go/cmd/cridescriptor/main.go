// Command cridescriptor prints the FileDescriptorSet of k8s.io/cri-api's runtime.v1 on standard output: the truth that
// cri-proto/tests/descriptors.rs holds our own cri.proto against.
package main

import (
	"fmt"
	"os"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cridescriptor:", err)
		os.Exit(1)
	}
}

func run() error {
	// The file is found through a service: the path it is registered under differs between releases.
	service, err := protoregistry.GlobalFiles.FindDescriptorByName("runtime.v1.RuntimeService")
	if err != nil {
		return err
	}
	file := protodesc.ToFileDescriptorProto(service.ParentFile())
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{file}}
	encoded, err := proto.Marshal(set)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(encoded)
	return err
}
