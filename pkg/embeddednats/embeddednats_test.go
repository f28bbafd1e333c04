package embeddednats

import (
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

func started(t *testing.T, config Config) *Server {
	t.Helper()
	if config.Dir == "" {
		config.Dir = t.TempDir()
	}
	server, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	return server
}

func TestAServerWithoutAListenerWritesToDiskBeforeItAcknowledges(t *testing.T) {
	server := started(t, Config{})
	if !server.SyncAlways() {
		t.Error("SyncAlways = false")
	}
	if err := server.Healthy(); err != nil {
		t.Error(err)
	}
	if got := server.ClientURL(); got != "" {
		t.Errorf("ClientURL = %q without a listener", got)
	}
	user, password := server.InProcessUser()
	nc, err := nats.Connect("", nats.InProcessServer(server), nats.UserInfo(user, password))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestLocalSubscribersNeedTheCredentialsOfTheURL(t *testing.T) {
	server := started(t, Config{Listen: ":0", User: "local", Password: "secret"})
	nc, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	u, err := url.Parse(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	if u.Hostname() != "127.0.0.1" {
		t.Errorf("listens on %s", u.Hostname())
	}
	u.User = nil
	if nc, err := nats.Connect(u.String()); err == nil {
		nc.Close()
		t.Error("an anonymous connection was let in")
	}
}

func TestATakenPortIsToldAtOnceAndByName(t *testing.T) {
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	_, err = Start(t.Context(), Config{Dir: t.TempDir(), Listen: taken.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("Start = %v, want an error that names %s", err, taken.Addr())
	}
}

func TestARestartKeepsPortAndConnections(t *testing.T) {
	server := started(t, Config{Listen: "127.0.0.1:0"})
	before := server.ClientURL()
	back := make(chan struct{}, 1)
	user, password := server.InProcessUser()
	nc, err := nats.Connect("", nats.InProcessServer(server), nats.UserInfo(user, password), nats.MaxReconnects(-1),
		nats.ReconnectWait(1), nats.ReconnectHandler(func(*nats.Conn) { back <- struct{}{} }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-back
	if server.ClientURL() != before {
		t.Errorf("ClientURL = %s, was %s", server.ClientURL(), before)
	}
	if err := server.Healthy(); err != nil {
		t.Error(err)
	}
	server.Shutdown()
	if server.Healthy() == nil {
		t.Error("a server that was shut down is healthy")
	}
	if err := server.Restart(t.Context()); err == nil {
		t.Error("a server that was shut down was restarted")
	}
}
