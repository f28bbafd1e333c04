package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/embeddednats"
	"posthorn/pkg/fault"
)

const (
	// attempt is how long one question to the broker may take.
	attempt = 5 * time.Second
	// deniedFor is how long a refused right keeps a connection from being ready after it was seen last.
	deniedFor = 2 * time.Minute
)

// Options of [Connect].
type Options struct {
	// URL of the NATS servers, comma-separated, credentials allowed in it. Ignored when Embedded is set.
	URL string
	// Embedded is the server inside the program: the connection never leaves the process.
	Embedded *embeddednats.Server
	// Name of the connection, shown by the server.
	Name   string
	Logger *slog.Logger
	// CredsFile is a NATS credentials file (JWT and seed); NKeyFile a file with an nkey seed.
	CredsFile, NKeyFile string
	// CAFile holds the certificate authority of the server, in PEM.
	CAFile string
	// InboxPrefix of the answers to this connection; a stage with rights of its own has one of its own, such as
	// "_INBOX_parser", so that stages cannot read each other's answers.
	InboxPrefix string
	// Lane is shared by all subscribers of a process that has more than one connection; nil makes one for this
	// connection.
	Lane *Lane
}

// Conn is a connection to the broker, shared by everything in the process. It reconnects for ever.
type Conn struct {
	nc        *nats.Conn
	js        jetstream.JetStream
	log       *slog.Logger
	embedded  *embeddednats.Server
	lane      *Lane
	publisher *Publisher

	mu      sync.Mutex
	denied  map[string]time.Time // right -> last refused
	session context.Context      //nolint:containedctx // ends when the connection is lost; then there is a new one
	lost    context.CancelFunc
}

// Connect connects to the broker. It fails when the broker cannot be reached now; afterwards the connection comes back
// by itself, for ever. ctx bounds the connecting only.
func Connect(ctx context.Context, options Options) (*Conn, error) {
	c := &Conn{log: options.Logger, embedded: options.Embedded, lane: options.Lane, denied: map[string]time.Time{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.lane == nil {
		c.lane = NewLane()
	}
	c.session, c.lost = context.WithCancel(context.Background())
	timeout := attempt
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	opts := []nats.Option{
		nats.Name(options.Name),
		nats.Timeout(timeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(500 * time.Millisecond),
		// Without a connection a publish fails at once instead of being kept in memory and called sent.
		nats.ReconnectBufSize(-1),
		nats.PingInterval(20 * time.Second),
		nats.IgnoreAuthErrorAbort(),
		nats.ErrorHandler(c.onError),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			c.endSession()
			if err != nil {
				c.log.Warn("connection to NATS lost", "error", fault.Quote(err.Error()))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { c.log.Info("connection to NATS is back") }),
	}
	if options.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(options.InboxPrefix))
	}
	if options.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(options.CredsFile))
	}
	if options.NKeyFile != "" {
		key, err := nats.NkeyOptionFromSeed(options.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("NATS nkey file: %w", err)
		}
		opts = append(opts, key)
	}
	if options.CAFile != "" {
		opts = append(opts, nats.RootCAs(options.CAFile))
	}
	if options.Embedded != nil {
		user, password := options.Embedded.InProcessUser()
		opts = append(opts, nats.InProcessServer(options.Embedded), nats.UserInfo(user, password))
		options.URL = ""
	}
	nc, err := nats.Connect(options.URL, opts...)
	if err != nil {
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) {
			return nil, fault.New(fault.StoreDenied, err, fault.Params{"right": "to sign in"})
		}
		return nil, fault.New(fault.StoreUnavailable, err, nil)
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(attempt))
	if err != nil {
		nc.Close()
		return nil, fault.New(fault.StoreUnavailable, err, nil)
	}
	c.nc, c.js = nc, js
	c.publisher = NewPublisher(c, PublisherConfig{})
	return c, nil
}

// Close closes the connection. Close subscribers first: what they have in hand cannot be settled afterwards.
func (c *Conn) Close() {
	_ = c.nc.FlushTimeout(2 * time.Second) // what was given back just now; without a connection nothing can be done
	c.nc.Close()
}

// URL of the server the connection is on, without credentials; empty for an embedded server and while disconnected.
func (c *Conn) URL() string {
	if c.embedded != nil {
		return ""
	}
	return c.nc.ConnectedUrlRedacted()
}

// Publisher is the one through which buckets and objects of this connection write. Whoever publishes through it shares
// its group commits.
func (c *Conn) Publisher() *Publisher { return c.publisher }

// Ready is nil while the connection stands and every right that was asked for was given. Otherwise it is
// store.unavailable, or store.denied naming the right that was refused within the last two minutes.
func (c *Conn) Ready() error {
	if !c.nc.IsConnected() {
		return fault.New(fault.StoreUnavailable, errors.New("not connected to NATS"), nil)
	}
	if right := c.deniedSince(time.Now().Add(-deniedFor)); right != "" {
		return fault.New(fault.StoreDenied, nil, fault.Params{"right": right})
	}
	if c.embedded != nil {
		return c.embedded.Healthy()
	}
	return nil
}

// onError hears what the server says beside the answers: above all which right it refused. The request that needed the
// right only sees a time-out.
func (c *Conn) onError(_ *nats.Conn, sub *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		subject := ""
		if sub != nil {
			subject = sub.Subject
		}
		c.log.Warn("NATS reports an error", "error", fault.Quote(err.Error()), "subject", subject)
		return
	}
	right := permission(err.Error())
	c.mu.Lock()
	_, known := c.denied[right]
	c.denied[right] = time.Now()
	c.mu.Unlock()
	if !known {
		c.log.Error("NATS refuses a right", "right", right)
	}
}

// permission makes `publish to mail.v1.raw.x` of `nats: permissions violation: Permissions Violation for Publish to
// "mail.v1.raw.x"`.
func permission(text string) string {
	_, right, found := strings.Cut(text, "Violation for ")
	if !found {
		return fault.Quote(text)
	}
	right = strings.ReplaceAll(right, `"`, "")
	for _, verb := range []string{"publish to ", "subscription to "} {
		if len(right) >= len(verb) && strings.EqualFold(right[:len(verb)], verb) {
			return fault.Quote(verb + right[len(verb):])
		}
	}
	return fault.Quote(right)
}

// deniedSince names the rights refused since then, "" when there is none.
func (c *Conn) deniedSince(since time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.denied, func(_ string, last time.Time) bool { return time.Since(last) > deniedFor })
	var rights []string
	for right, last := range c.denied {
		if !last.Before(since) {
			rights = append(rights, right)
		}
	}
	slices.Sort(rights)
	return strings.Join(rights, ", ")
}

// SyncAlways tells whether the broker writes every message to disk before it acknowledges it. The embedded server is
// asked itself; an external one through its monitoring address such as "http://127.0.0.1:8222", which must belong to
// the server, or the cluster, of this connection. Without a monitoring address, or when it cannot be asked, the answer
// is false and a store.not_durable that says why.
func (c *Conn) SyncAlways(ctx context.Context, monitorURL string) (bool, error) {
	if c.embedded != nil {
		return c.embedded.SyncAlways(), nil
	}
	unproven := func(cause error) (bool, error) { return false, fault.New(fault.StoreNotDurable, cause, nil) }
	if monitorURL == "" {
		return unproven(errors.New("no monitoring address given"))
	}
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	address := strings.TrimSuffix(monitorURL, "/") + "/jsz"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return unproven(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return unproven(err)
	}
	defer func() { _ = response.Body.Close() }() // it was only read
	var info struct {
		ID     string `json:"server_id"`
		Config struct {
			SyncAlways bool `json:"sync_always"`
		} `json:"config"`
		Cluster struct {
			Name string `json:"name"`
		} `json:"meta_cluster"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, response.Body, 1<<20)).Decode(&info); err != nil {
		return unproven(fmt.Errorf("monitoring address: %w", err))
	}
	sameCluster := info.Cluster.Name != "" && info.Cluster.Name == c.nc.ConnectedClusterName()
	if info.ID != c.nc.ConnectedServerId() && !sameCluster {
		return unproven(errors.New("the monitoring address belongs to another server"))
	}
	return info.Config.SyncAlways, nil
}

// endSession ends whatever waits for an answer: on a connection that was lost it does not come any more.
func (c *Conn) endSession() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost()
	c.session, c.lost = context.WithCancel(context.Background())
}

// within is a context for one exchange with the broker: it ends after a time, and when the connection is lost.
func (c *Conn) within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	unhook := context.AfterFunc(session, cancel)
	return ctx, func() {
		unhook()
		cancel()
	}
}

// ask sends one request and returns its answer.
func (c *Conn) ask(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	ctx, cancel := c.within(ctx, attempt)
	defer cancel()
	return c.nc.RequestMsgWithContext(ctx, msg)
}
