package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

const (
	logindName   = "org.freedesktop.login1"
	logindObject = "/org/freedesktop/login1"
	logindFace   = "org.freedesktop.login1.Manager"
)

// Logind stands in for systemd-logind on a bus of its own: it hands out locks that delay a shutdown and announces one
// (org.freedesktop.login1(5)).
type Logind struct {
	Address string
	daemon  *Process
	bus     *dbus.Conn
	locks   chan *os.File
}

// inhibitor is what the bus sees of it.
type inhibitor struct{ locks chan *os.File }

// Inhibit hands out a lock: the write end of a pipe, held until it is closed everywhere.
func (i inhibitor) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	read, write, err := os.Pipe()
	if err != nil {
		return -1, dbus.MakeFailedError(err)
	}
	i.locks <- read
	// Sending duplicates it; ours goes once the answer is out, that the lock is the client's alone.
	fd, err := syscall.Dup(int(write.Fd()))
	write.Close()
	if err != nil {
		return -1, dbus.MakeFailedError(err)
	}
	time.AfterFunc(2*time.Second, func() { _ = syscall.Close(fd) })
	return dbus.UnixFD(fd), nil
}

func startLogind(ctx context.Context, dir string) (*Logind, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "bus")
	config := fmt.Sprintf(`<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`, socket)
	if err := os.WriteFile(filepath.Join(dir, "bus.conf"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	l := &Logind{Address: "unix:path=" + socket, locks: make(chan *os.File, 16)}
	l.daemon = newProcess("dbus-daemon", filepath.Join(dir, "bus.log"), func() *exec.Cmd {
		return exec.Command("dbus-daemon", "--nofork", "--config-file="+filepath.Join(dir, "bus.conf"))
	})
	if err := l.daemon.Start(); err != nil {
		return nil, err
	}
	err := l.daemon.waitUntil(ctx, 20*time.Second, func(context.Context) (err error) {
		l.bus, err = dbus.Connect(l.Address)
		return err
	})
	if err != nil {
		return nil, err
	}
	properties := prop.Map{logindFace: {"InhibitDelayMaxUSec": {Value: uint64(120e6)}}}
	if _, err := prop.Export(l.bus, logindObject, properties); err != nil {
		return nil, err
	}
	if err := l.bus.Export(inhibitor{l.locks}, logindObject, logindFace); err != nil {
		return nil, err
	}
	_, err = l.bus.RequestName(logindName, dbus.NameFlagDoNotQueue)
	return l, err
}

// Shutdown announces one and returns when the lock that was handed out first has been let go: from then on a real
// logind would stop everything.
func (l *Logind) Shutdown(patience time.Duration) error {
	var lock *os.File
	select {
	case lock = <-l.locks:
	default:
		return fmt.Errorf("kubelet holds no lock against a shutdown")
	}
	defer lock.Close()
	if err := l.bus.Emit(logindObject, logindFace+".PrepareForShutdown", true); err != nil {
		return err
	}
	if err := lock.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := lock.Read(make([]byte, 1)); os.IsTimeout(err) {
		return fmt.Errorf("kubelet still holds its lock after %v", patience)
	}
	return nil
}

func (l *Logind) stop() error {
	l.bus.Close()
	return l.daemon.Stop(syscall.SIGTERM)
}
