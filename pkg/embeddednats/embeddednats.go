package embeddednats

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"posthorn/pkg/fault"
)

const (
	maxPayload = 8 << 20  // the server warns above this: whole messages stand in memory
	maxPending = 64 << 20 // bytes queued for one slow client before it is cut off
	maxMemory  = 64 << 20 // streams kept in memory: only leases are
	startUp    = 60 * time.Second
)

// Config of an embedded server.
type Config struct {
	// Dir holds the streams. It is created when missing, readable by its owner only. No two servers may share it.
	Dir string
	// Listen is the TCP address for local subscribers, such as "127.0.0.1:4222" or ":0" for a free port; an address
	// without a host listens on 127.0.0.1. Empty: no listener at all.
	Listen string
	// User and Password of the TCP listener. An empty User is "posthorn", an empty Password a random one: there is no
	// anonymous access.
	User, Password string
	// MaxStore bounds the bytes of all streams on disk; 0 means three quarters of the free space.
	MaxStore int64
	// Name of the server; "posthorn" when empty.
	Name   string
	Logger *slog.Logger
}

// Server is a running embedded NATS server.
type Server struct {
	config   Config
	options  server.Options
	inner    string // password of the in-process user
	mu       sync.Mutex
	current  *server.Server
	shutdown bool
}

// innerUser is who in-process connections sign in as.
const innerUser = "posthorn-inside"

// Start starts a server and returns once it serves, streams recovered. A taken port or an unusable directory is an
// error that names it.
func Start(ctx context.Context, config Config) (*Server, error) {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.User == "" {
		config.User = "posthorn"
	}
	if config.Password == "" {
		config.Password = rand.Text()
	}
	if config.Name == "" {
		config.Name = "posthorn"
	}
	if config.Dir == "" {
		return nil, errors.New("embedded NATS: no directory given")
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded NATS: directory: %w", err)
	}
	s := &Server{config: config, inner: rand.Text()}
	s.options = server.Options{
		ServerName:         config.Name,
		JetStream:          true,
		StoreDir:           config.Dir,
		SyncAlways:         true,
		SyncInterval:       2 * time.Minute,
		JetStreamMaxStore:  config.MaxStore,
		JetStreamMaxMemory: maxMemory,
		MaxPayload:         maxPayload,
		MaxPending:         maxPending,
		NoSigs:             true,
		DontListen:         config.Listen == "",
		Users: []*server.User{
			{Username: innerUser, Password: s.inner},
			{Username: config.User, Password: config.Password},
		},
		DisableJetStreamBanner: true,
	}
	if config.Listen != "" {
		host, port, err := net.SplitHostPort(config.Listen)
		if err != nil {
			return nil, fmt.Errorf("embedded NATS: listen address %q: %w", config.Listen, err)
		}
		if host == "" {
			host = "127.0.0.1"
		}
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("embedded NATS: listen address %q: %w", config.Listen, err)
		}
		s.options.Host, s.options.Port = host, int(number)
		if number == 0 {
			s.options.Port = server.RANDOM_PORT
		}
		if err := free(ctx, host, port); err != nil {
			return nil, err
		}
	}
	current, err := start(ctx, s.options, config.Logger)
	if err != nil {
		return nil, err
	}
	s.current = current
	if addr, ok := current.Addr().(*net.TCPAddr); ok && config.Listen != "" {
		s.options.Port = addr.Port // a restart keeps the port that was picked
	}
	return s, nil
}

// free tells a taken port before the server is started, which would only log it.
func free(ctx context.Context, host, port string) error {
	if port == "0" {
		return nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return fmt.Errorf("NATS cannot listen on %s: %w", net.JoinHostPort(host, port), err)
	}
	return listener.Close()
}

func start(ctx context.Context, options server.Options, log *slog.Logger) (*server.Server, error) {
	ns, err := server.NewServer(&options)
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	logger := &logger{log: log, fatal: make(chan error, 1)}
	ns.SetLoggerV2(logger, false, false, false)
	started := make(chan struct{})
	go func() {
		defer close(started)
		ns.Start()
	}()
	ready := make(chan bool, 1)
	go func() {
		<-started
		ready <- ns.ReadyForConnections(startUp)
	}()
	select {
	case ok := <-ready:
		// A fatal message may have come together with readiness: a server without JetStream is of no use.
		select {
		case err = <-logger.fatal:
		default:
			if !ok || !ns.JetStreamEnabled() {
				err = errors.New("it did not become ready")
			}
		}
	case err = <-logger.fatal:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		ns.Shutdown()
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	return ns, nil
}

// ClientURL is the URL for local subscribers, with their credentials in it; empty without a listener.
func (s *Server) ClientURL() string {
	if s.config.Listen == "" {
		return ""
	}
	u := url.URL{
		Scheme: "nats",
		User:   url.UserPassword(s.config.User, s.config.Password),
		Host:   net.JoinHostPort(s.options.Host, strconv.Itoa(s.options.Port)),
	}
	return u.String()
}

// InProcessConn opens a connection that never leaves the process. Package bus uses it, also to reconnect after a
// [Server.Restart].
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil, errors.New("embedded NATS is not running")
	}
	return s.current.InProcessConn()
}

// InProcessUser is who to sign in as on an in-process connection.
func (s *Server) InProcessUser() (user, password string) { return innerUser, s.inner }

// SyncAlways tells whether every message is on disk before it is acknowledged, as the running server says.
func (s *Server) SyncAlways() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return false
	}
	config := s.current.JetStreamConfig()
	return config != nil && config.SyncAlways
}

// MaxStore is how many bytes the running server may keep on disk, 0 while it is down.
func (s *Server) MaxStore() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return 0
	}
	config := s.current.JetStreamConfig()
	if config == nil {
		return 0
	}
	return config.MaxStore
}

// Healthy is nil while the server stores messages. After the disk was full the server may have given up on JetStream
// until a [Server.Restart]: then it is store.full; a server that is down is store.unavailable.
func (s *Server) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.current == nil || !s.current.Running():
		return unavailable(errors.New("embedded NATS is not running"))
	case !s.current.JetStreamEnabled():
		return fault.New(fault.StoreFull, errors.New("embedded NATS has switched off JetStream"), nil)
	}
	return nil
}

// Restart stops the server and starts it again on the same directory and port, which is what a server needs that met a
// full disk. Connections come back by themselves.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shutdown {
		return unavailable(errors.New("embedded NATS was shut down"))
	}
	if s.current != nil {
		s.current.Shutdown()
		s.current.WaitForShutdown()
		s.current = nil
	}
	current, err := start(ctx, s.options, s.config.Logger)
	if err != nil {
		return err
	}
	s.current = current
	return nil
}

// Shutdown stops the server and returns when it is down. It is safe to call it twice.
func (s *Server) Shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shutdown = true
	if s.current != nil {
		s.current.Shutdown()
		s.current.WaitForShutdown()
		s.current = nil
	}
}

func unavailable(cause error) error { return fault.New(fault.StoreUnavailable, cause, nil) }
