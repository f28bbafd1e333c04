package bus

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// external starts a server as an operator would: not embedded, with users of different rights.
func external(t *testing.T, users ...*server.User) *server.Server {
	t.Helper()
	ns, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
		Users: append(users, &server.User{Username: "admin", Password: "admin"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server did not start")
	}
	return ns
}

func as(t *testing.T, ns *server.Server, user string) *Conn {
	t.Helper()
	url := strings.Replace(ns.ClientURL(), "nats://", "nats://"+user+":"+user+"@", 1)
	conn, err := Connect(t.Context(), Options{URL: url, InboxPrefix: "_INBOX_" + user})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func TestARefusedRightIsNamedInsteadOfATimeOut(t *testing.T) {
	ns := external(t, &server.User{Username: "parser", Password: "parser", Permissions: &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: []string{"mail.v1.parsed.*", "$JS.API.STREAM.INFO.>"}},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX_parser.>"}},
	}})
	if _, err := as(t, ns, "admin").Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	conn := as(t, ns, "parser")
	if err := conn.Ready(); err != nil {
		t.Errorf("ready: %v", err)
	}
	publish(t, conn, contract.ParsedSubject("sales"), "allowed")
	denied := func(what string, err error, right string) {
		t.Helper()
		failure := fault.As(err)
		if failure == nil || failure.Code != fault.StoreDenied || !strings.Contains(failure.Params["right"], right) {
			t.Errorf("%s: %v, %v, want the right %q", what, err, failure, right)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := conn.Publisher().Publish(ctx, Outgoing{Subject: contract.RawSubject("sales", "mail"), Body: []byte("x")})
	denied("publishing", err, "publish to mail.v1.raw.sales.mail")
	denied("ready", conn.Ready(), "publish to mail.v1.raw.sales.mail")
	err = conn.Listen(t.Context(), "trace.>", func(string, []byte) {})
	denied("listening", err, "subscription to trace.>")
	if count := count(t, as(t, ns, "admin"), contract.StreamMail); count != 0 {
		t.Errorf("%d mails stored", count)
	}
}

func TestAWrongPasswordIsDeniedAndNoServerIsUnavailable(t *testing.T) {
	ns := external(t)
	_, err := Connect(t.Context(), Options{URL: strings.Replace(ns.ClientURL(), "nats://", "nats://admin:wrong@", 1)})
	if fault.CodeOf(err) != fault.StoreDenied {
		t.Errorf("wrong password: %v", err)
	}
	url := ns.ClientURL()
	ns.Shutdown()
	ns.WaitForShutdown()
	if _, err := Connect(t.Context(), Options{URL: url}); fault.CodeOf(err) != fault.StoreUnavailable {
		t.Errorf("no server: %v", err)
	}
}

func TestProvisioningTwiceChangesNothingAndRepairsWhatWasChanged(t *testing.T) {
	ctx := t.Context()
	conn := connected(t, store(t))
	if err := conn.CheckProvisioned(ctx); fault.CodeOf(err) != fault.StoreMissing ||
		!strings.Contains(fault.As(err).Params["what"], "the stream MAIL") {
		t.Errorf("an empty store: %v, %v", err, fault.As(err).Params)
	}
	changes, err := conn.Provision(ctx, ProvisionConfig{})
	if err != nil || !slices.Contains(changes, "created the stream MAIL") ||
		!slices.Contains(changes, "created the consumer router") {
		t.Errorf("first: %v, %v", changes, err)
	}
	if err := conn.CheckProvisioned(ctx); err != nil {
		t.Error(err)
	}
	if changes, err := conn.Provision(ctx, ProvisionConfig{}); err != nil || len(changes) > 0 {
		t.Errorf("second: %v, %v", changes, err)
	}
	changes, err = conn.Provision(ctx, ProvisionConfig{MaxBytes: 1 << 30})
	if err != nil || len(changes) != 2 {
		t.Errorf("with a bound: %v, %v", changes, err)
	}
	if changes, err := conn.Provision(ctx, ProvisionConfig{}); err != nil || len(changes) > 0 {
		t.Errorf("the bound does not stay: %v, %v", changes, err)
	}
	stream, err := conn.js.Stream(ctx, "CONTACT_REQUESTS")
	if err != nil {
		t.Fatal(err)
	}
	broken := stream.CachedInfo().Config
	broken.MaxAge = time.Hour
	if _, err := conn.js.UpdateStream(ctx, broken); err != nil {
		t.Fatal(err)
	}
	changes, err = conn.Provision(ctx, ProvisionConfig{})
	if err != nil || len(changes) != 1 || !strings.Contains(changes[0], "max_age") {
		t.Errorf("repair: %v, %v", changes, err)
	}
}

func TestAStoreHasOneIdentityAndANewOneHasAnother(t *testing.T) {
	server := store(t)
	conn := connected(t, server)
	if _, err := conn.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	id, created, err := conn.StoreID(t.Context())
	if err != nil || !created || id == "" {
		t.Errorf("first: %q, %v, %v", id, created, err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is back", func() bool { return conn.Ready() == nil })
	again, created, err := conn.StoreID(t.Context())
	if err != nil || created || again != id {
		t.Errorf("again: %q, %v, %v; want %q", again, created, err, id)
	}
	if other, _, err := provisioned(t).StoreID(t.Context()); err != nil || other == id {
		t.Errorf("another store: %q, %v", other, err)
	}
}

func TestAnEmbeddedServerIsAskedItselfWhetherItSyncs(t *testing.T) {
	if ok, err := connected(t, store(t)).SyncAlways(t.Context(), ""); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

func TestAnExternalServerIsAskedThroughItsOwnMonitoringAddressOnly(t *testing.T) {
	ns := external(t)
	conn := as(t, ns, "admin")
	monitor := func(id string, always bool) string {
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/jsz" {
				http.NotFound(w, r)
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]any{
				"server_id": id, "config": map[string]any{"sync_always": always},
			})
		}))
		t.Cleanup(web.Close)
		return web.URL
	}
	if ok, err := conn.SyncAlways(t.Context(), monitor(ns.ID(), true)); !ok || err != nil {
		t.Errorf("always: %v, %v", ok, err)
	}
	if ok, err := conn.SyncAlways(t.Context(), monitor(ns.ID(), false)); ok || err != nil {
		t.Errorf("lazy: %v, %v", ok, err)
	}
	for name, url := range map[string]string{
		"another server": monitor("other", true), "none": "", "wrong": "http://127.0.0.1:1",
	} {
		if ok, err := conn.SyncAlways(t.Context(), url); ok || fault.CodeOf(err) != fault.StoreNotDurable {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		filter, subject string
		want            bool
	}{
		{"a.b", "a.b", true}, {"a.b", "a.c", false}, {"a.*", "a.b", true}, {"a.*", "a.b.c", false}, {"a.*", "a", false},
		{"a.>", "a.b.c", true}, {"a.>", "a", false}, {">", "a", true}, {"a.*.c", "a.b.c", true}, {"*.b", "a.c", false},
	} {
		if got := matches(test.filter, test.subject); got != test.want {
			t.Errorf("matches(%q, %q) = %v", test.filter, test.subject, got)
		}
	}
}
