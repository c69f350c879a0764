package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Process is a program of the node that is started, killed and started again.
type Process struct {
	name string
	log  string
	make func() *exec.Cmd
	cmd  *exec.Cmd
	done chan struct{}
}

func newProcess(name, log string, make func() *exec.Cmd) *Process {
	return &Process{name: name, log: log, make: make}
}

// Start runs it; its output is appended to its log.
func (p *Process) Start() error {
	if p.Running() {
		return fmt.Errorf("%s runs already", p.name)
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	p.cmd, p.done = p.make(), make(chan struct{})
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// Not in our process group: a terminal's Ctrl-C is ours alone.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(p.cmd, p.done)
	return nil
}

// Running tells whether it was started and has not ended.
func (p *Process) Running() bool {
	if p.done == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Pid is 0 while it does not run.
func (p *Process) Pid() int {
	if !p.Running() {
		return 0
	}
	return p.cmd.Process.Pid
}

// Stop sends the signal and waits; after 30 s SIGKILL follows and is an error.
func (p *Process) Stop(signal syscall.Signal) error {
	if !p.Running() {
		return nil
	}
	_ = p.cmd.Process.Signal(signal)
	select {
	case <-p.done:
		return nil
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s ignored %v for 30 s", p.name, signal)
	}
}

// Tail is the end of its log.
func (p *Process) Tail(lines int) string {
	data, _ := os.ReadFile(p.log)
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// waitUntil asks until it is answered without an error; gives up when the process has ended or the context is done.
func (p *Process) waitUntil(ctx context.Context, patience time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if !p.Running() {
			return fmt.Errorf("%s ended:\n%s", p.name, p.Tail(20))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %v: %w\n%s", p.name, patience, err, p.Tail(20))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Memory is the resident set of a process in bytes (VmRSS of proc_pid_status(5)); 0: it is gone.
func Memory(pid int) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, line := range strings.Split(string(status), "\n") {
		var kilobytes int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kilobytes); n == 1 {
			return kilobytes << 10
		}
	}
	return 0
}
