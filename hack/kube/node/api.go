package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// API is kubelet's own, with the clients that kubectl uses behind an API server.
type API struct {
	base   url.URL
	config *rest.Config
	client *http.Client
}

func newAPI() *API {
	base := url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", port)}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 16} // its own certificate, on loopback
	config := &rest.Config{Host: base.String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	return &API{base: base, config: config, client: &http.Client{Transport: transport}}
}

// Open starts a GET; a status other than 2xx is an error with the body's text.
func (a *API) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	return a.ask(ctx, http.MethodGet, path)
}

func (a *API) ask(ctx context.Context, method, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, a.base.String()+path, nil)
	if err != nil {
		return nil, err
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode/100 != 2 {
		defer answer.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4096))
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, bytes.TrimSpace(text))
	}
	return answer.Body, nil
}

// Get is Open for short answers.
func (a *API) Get(ctx context.Context, path string) (string, error) {
	return a.short(ctx, http.MethodGet, path)
}

// Post asks for something to be done, with nothing but the path to say what.
func (a *API) Post(ctx context.Context, path string) (string, error) {
	return a.short(ctx, http.MethodPost, path)
}

func (a *API) short(ctx context.Context, method, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	body, err := a.ask(ctx, method, path)
	if err != nil {
		return "", err
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	return string(text), err
}

func get[T any](ctx context.Context, a *API, path string) (*T, error) {
	text, err := a.Get(ctx, path)
	if err != nil {
		return nil, err
	}
	value := new(T)
	return value, json.Unmarshal([]byte(text), value)
}

// Pods with their status.
func (a *API) Pods(ctx context.Context) ([]v1.Pod, error) {
	list, err := get[v1.PodList](ctx, a, "/pods")
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// Summary is /stats/summary, newly collected.
func (a *API) Summary(ctx context.Context) (*stats.Summary, error) {
	return get[stats.Summary](ctx, a, "/stats/summary?only_cpu_and_memory=false")
}

// LogPath of a container's log; options as kubectl logs has them.
func LogPath(pod, container string, options url.Values) string {
	return fmt.Sprintf("/containerLogs/default/%s/%s?%s", PodName(pod), container, options.Encode())
}

// Logs reads a log to its end.
func (a *API) Logs(ctx context.Context, pod, container string, options url.Values) (string, error) {
	return a.Get(ctx, LogPath(pod, container, options))
}

// PodName is what kubelet makes of a static pod's.
func PodName(pod string) string { return pod + "-" + Name }

func (a *API) streamURL(kind, pod, container string, query url.Values) *url.URL {
	u := a.base
	u.Path = fmt.Sprintf("/%s/default/%s", kind, PodName(pod))
	if container != "" {
		u.Path += "/" + container
	}
	u.RawQuery = query.Encode()
	return &u
}

func streamQuery(options remotecommand.StreamOptions, command []string) url.Values {
	query := url.Values{"command": command}
	for name, wanted := range map[string]bool{"input": options.Stdin != nil, "output": options.Stdout != nil, "error": options.Stderr != nil, "tty": options.Tty} {
		if wanted {
			query.Set(name, "1")
		}
	}
	return query
}

// Stream is exec (with a command) or attach, over SPDY or WebSocket.
func (a *API) Stream(ctx context.Context, kind, pod, container string, websocket bool, options remotecommand.StreamOptions, command ...string) error {
	target := a.streamURL(kind, pod, container, streamQuery(options, command))
	var executor remotecommand.Executor
	var err error
	if websocket {
		executor, err = remotecommand.NewWebSocketExecutor(a.config, http.MethodGet, target.String())
	} else {
		executor, err = remotecommand.NewSPDYExecutor(a.config, http.MethodPost, target)
	}
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, options)
}

// Exec runs a command by SPDY and answers its standard output; standard error is part of an error.
func (a *API) Exec(ctx context.Context, pod, container string, command ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	err := a.Stream(ctx, "exec", pod, container, false, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}, command...)
	if err != nil {
		return stdout.String(), fmt.Errorf("exec %q in %s/%s: %w: %s", command, pod, container, err, stderr.String())
	}
	return stdout.String(), nil
}

// PortForward forwards a free loopback port to the pod's until the context ends; the answer is the local port.
func (a *API) PortForward(ctx context.Context, pod string, remote int) (uint16, error) {
	transport, upgrader, err := spdy.RoundTripperFor(a.config)
	if err != nil {
		return 0, err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, a.streamURL("portForward", pod, "", nil))
	ready, failed := make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.New(dialer, []string{fmt.Sprintf("0:%d", remote)}, ctx.Done(), ready, io.Discard, io.Discard)
	if err != nil {
		return 0, err
	}
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case err := <-failed:
		return 0, fmt.Errorf("port-forward to %s:%d: %w", pod, remote, err)
	case <-ready:
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return 0, err
	}
	return ports[0].Local, nil
}
