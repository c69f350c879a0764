// Command witness is what the scenarios run in containers where a shell is not enough. Static, no configuration.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const usage = `usage: witness serve          http :8080, gRPC health :9090, tcp echo :7070; unhealthy while /tmp/unhealthy exists
       witness count MS      a numbered line every MS milliseconds, for ever
       witness lines N       N numbered lines as fast as they are taken, then sleeps
       witness flood         long lines, for ever
       witness eat MIB       holds that much memory, a MiB after the other
       witness get URL       fetches it
       witness fork          starts itself again and again
`

func main() {
	arg := func(i int) int {
		if len(os.Args) <= i {
			return 0
		}
		n, _ := strconv.Atoi(os.Args[i])
		return n
	}
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	switch os.Args[1] {
	case "serve":
		serve()
	case "count":
		for i := 1; ; i++ {
			fmt.Printf("line %d\n", i)
			time.Sleep(time.Duration(arg(2)) * time.Millisecond)
		}
	case "lines":
		for i := 1; i <= arg(2); i++ {
			fmt.Printf("line %d\n", i)
		}
		time.Sleep(time.Hour)
	case "flood":
		line := append(make([]byte, 1000), '\n')
		for i := range line[:1000] {
			line[i] = 'x'
		}
		for {
			_, _ = os.Stdout.Write(line)
		}
	case "get":
		answer, err := http.Get(os.Args[2])
		fail(err)
		_, err = io.Copy(os.Stdout, answer.Body)
		fail(err)
	case "eat":
		eat(arg(2))
	case "fork":
		for {
			_ = exec.Command("/proc/self/exe", "fork").Start()
			time.Sleep(10 * time.Millisecond)
		}
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
}

func healthy() bool {
	_, err := os.Stat("/tmp/unhealthy")
	return err != nil
}

func serve() {
	http.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		if !healthy() {
			http.Error(w, "unhealthy", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintln(w, "hello from", host)
	})
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, probe{})
	go func() { fail(server.Serve(listen(":9090"))) }()
	go echo(listen(":7070"))
	fail(http.Serve(listen(":8080"), nil))
}

func listen(address string) net.Listener {
	listener, err := net.Listen("tcp", address)
	fail(err)
	return listener
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func echo(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		fail(err)
		go func() {
			_, _ = io.Copy(connection, connection)
			connection.Close()
		}()
	}
}

type probe struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (probe) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	status := grpc_health_v1.HealthCheckResponse_SERVING
	if !healthy() {
		status = grpc_health_v1.HealthCheckResponse_NOT_SERVING
	}
	return &grpc_health_v1.HealthCheckResponse{Status: status}, nil
}

func eat(mib int) {
	var held [][]byte
	for range mib {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		held = append(held, block)
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Println("full:", len(held), "MiB")
	time.Sleep(time.Hour)
}
