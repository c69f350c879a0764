// nri-plugin: a plugin for the tests, on NRI's own library. It writes each call as a line of JSON, and does what its
// options say. Launched by the runtime it reads them from its configuration, else from -config.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// options of one plugin. Events are named as the library's functions are (RunPodSandbox, CreateContainer, ...).
type options struct {
	// Log is the file of the lines.
	Log string `json:"log"`
	// Only these events; none: all that this plugin has.
	Only []string `json:"only"`
	// Only pods with this name are changed, refused and stalled.
	Pod string `json:"pod"`
	// Adjust is the answer to CreateContainer.
	Adjust *api.ContainerAdjustment `json:"adjust"`
	// Limits are the answer to UpdateContainer.
	Limits *api.LinuxResources `json:"limits"`
	// OnCreate, OnSync: limits of all containers known by then, as updates in those answers.
	OnCreate *api.LinuxResources `json:"on_create"`
	OnSync   *api.LinuxResources `json:"on_sync"`
	// Fail names events that are answered with an error, Stall those that are never answered.
	Fail  []string `json:"fail"`
	Stall []string `json:"stall"`
	// Reject is what the validator says.
	Reject string `json:"reject"`
	// Unsolicited: limits for all containers, 100 ms after the start of each.
	Unsolicited *api.LinuxResources `json:"unsolicited"`
	// SlowSync is how long Synchronize takes, nanoseconds.
	SlowSync time.Duration `json:"slow_sync"`
}

type plugin struct {
	stub stub.Stub
	options
	lock  sync.Mutex
	known []string
}

// line is what a test reads.
type line struct {
	Event     string         `json:"event"`
	Pod       string         `json:"pod,omitempty"`
	Container string         `json:"container,omitempty"`
	ID        string         `json:"id,omitempty"`
	State     string         `json:"state,omitempty"`
	ExitCode  int32          `json:"exit_code,omitempty"`
	Pods      []string       `json:"pods,omitempty"`
	Ids       []string       `json:"ids,omitempty"`
	Full      *api.Container `json:"full,omitempty"`
	Config    string         `json:"config,omitempty"`
	Env       []string       `json:"env,omitempty"`
	Failed    int            `json:"failed,omitempty"`
}

func (p *plugin) write(l line) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.Log == "" {
		return
	}
	text, err := json.Marshal(l)
	if err != nil {
		text, _ = json.Marshal(line{Event: "error: " + err.Error()})
	}
	file, err := os.OpenFile(p.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "nri-plugin:", err)
		return
	}
	defer file.Close()
	file.Write(append(text, '\n'))
}

// done writes a call and does what the options say about it.
func (p *plugin) done(ctx context.Context, event string, pod *api.PodSandbox, container *api.Container, full bool) error {
	l := line{Event: event, Pod: pod.GetName(), ID: pod.GetId()}
	if container != nil {
		l.Container, l.ID = container.GetName(), container.GetId()
		l.State, l.ExitCode = container.GetState().String(), container.GetExitCode()
		if full {
			l.Full = container
		}
	}
	p.write(l)
	if !p.concerns(pod) {
		return nil
	}
	if slices.Contains(p.Stall, event) {
		select {}
	}
	if slices.Contains(p.Fail, event) {
		return errors.New("nri-plugin says no to " + event)
	}
	return nil
}

func (p *plugin) concerns(pod *api.PodSandbox) bool {
	return p.Pod == "" || p.Pod == pod.GetName()
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (api.EventMask, error) {
	if config != "" {
		if err := json.Unmarshal([]byte(config), &p.options); err != nil {
			return 0, err
		}
	}
	p.write(line{Event: "Configure", Config: runtime + " " + version, Env: os.Environ()})
	if len(p.Only) == 0 {
		return 0, nil
	}
	return api.ParseEventMask(p.Only...)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	l := line{Event: "Synchronize"}
	for _, pod := range pods {
		l.Pods = append(l.Pods, pod.GetName())
	}
	for _, container := range containers {
		l.Ids = append(l.Ids, container.GetId())
		p.know(container.GetId())
	}
	p.write(l)
	time.Sleep(p.SlowSync)
	return p.updates(p.OnSync, ""), nil
}

func (p *plugin) know(id string) {
	p.lock.Lock()
	defer p.lock.Unlock()
	p.known = append(p.known, id)
}

// updates of all known containers but one.
func (p *plugin) updates(limits *api.LinuxResources, but string) (all []*api.ContainerUpdate) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if limits == nil {
		return nil
	}
	for _, id := range p.known {
		if id != but {
			all = append(all, &api.ContainerUpdate{ContainerId: id, Linux: &api.LinuxContainerUpdate{Resources: limits}})
		}
	}
	return all
}

func (p *plugin) Shutdown(context.Context) { p.write(line{Event: "Shutdown"}) }

func (p *plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.done(ctx, "RunPodSandbox", pod, nil, false)
}

func (p *plugin) UpdatePodSandbox(ctx context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.done(ctx, "UpdatePodSandbox", pod, nil, false)
}

func (p *plugin) PostUpdatePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.done(ctx, "PostUpdatePodSandbox", pod, nil, false)
}

func (p *plugin) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.done(ctx, "StopPodSandbox", pod, nil, false)
}

func (p *plugin) RemovePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.done(ctx, "RemovePodSandbox", pod, nil, false)
}

func (p *plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.done(ctx, "CreateContainer", pod, container, true); err != nil {
		return nil, nil, err
	}
	updates := p.updates(p.OnCreate, container.GetId())
	p.know(container.GetId())
	if !p.concerns(pod) {
		return nil, updates, nil
	}
	return p.Adjust, updates, nil
}

func (p *plugin) PostCreateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.done(ctx, "PostCreateContainer", pod, container, false)
}

func (p *plugin) StartContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.done(ctx, "StartContainer", pod, container, false)
}

func (p *plugin) PostStartContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	if p.Unsolicited != nil {
		time.AfterFunc(100*time.Millisecond, func() {
			failed, err := p.stub.UpdateContainers(p.updates(p.Unsolicited, ""))
			if err != nil {
				fmt.Fprintln(os.Stderr, "nri-plugin: UpdateContainers:", err)
			}
			p.write(line{Event: "Unsolicited", Failed: len(failed)})
		})
	}
	return p.done(ctx, "PostStartContainer", pod, container, false)
}

func (p *plugin) UpdateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.done(ctx, "UpdateContainer", pod, container, false); err != nil || p.Limits == nil {
		return nil, err
	}
	own := &api.ContainerUpdate{ContainerId: container.GetId(), Linux: &api.LinuxContainerUpdate{Resources: p.Limits}}
	return []*api.ContainerUpdate{own}, nil
}

func (p *plugin) PostUpdateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.done(ctx, "PostUpdateContainer", pod, container, false)
}

func (p *plugin) StopContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.done(ctx, "StopContainer", pod, container, false)
}

func (p *plugin) RemoveContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.done(ctx, "RemoveContainer", pod, container, false)
}

func (p *plugin) ValidateContainerAdjustment(ctx context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	if err := p.done(ctx, "ValidateContainerAdjustment", request.GetPod(), request.GetContainer(), false); err != nil {
		return err
	}
	if p.Reject != "" && p.concerns(request.GetPod()) {
		return errors.New(p.Reject)
	}
	return nil
}

func run() error {
	p := &plugin{}
	name := flag.String("name", "", "name; default: what the runtime says")
	index := flag.String("idx", "", "two digits")
	socket := flag.String("socket", "", "the runtime's socket")
	config := flag.String("config", "", "file with options")
	flag.Parse()
	var opts []stub.Option
	if *name != "" {
		opts = append(opts, stub.WithPluginName(*name), stub.WithPluginIdx(*index), stub.WithSocketPath(*socket))
	}
	if *config != "" {
		text, err := os.ReadFile(*config)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, &p.options); err != nil {
			return err
		}
	}
	closed := sync.OnceFunc(func() { p.write(line{Event: "Closed"}) })
	opts = append(opts, stub.WithOnClose(closed))
	s, err := stub.New(p, opts...)
	if err != nil {
		return err
	}
	p.stub = s
	if err := s.Start(context.Background()); err != nil {
		return err
	}
	// The stub may end before it has called back: that the connection ended still belongs in the log.
	s.Wait()
	closed()
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "nri-plugin:", err)
		os.Exit(1)
	}
}
