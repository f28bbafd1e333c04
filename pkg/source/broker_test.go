package source_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/embeddednats"
	"posthorn/pkg/fault"
	"posthorn/pkg/secret"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

// broker is a store of sources over a real broker.
func broker(t *testing.T) (*bus.Conn, *source.Store) {
	t.Helper()
	server, err := embeddednats.Start(t.Context(), embeddednats.Config{Dir: t.TempDir(), MaxStore: 4 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	conn, err := bus.Connect(t.Context(), bus.Options{Embedded: server, Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if _, err := conn.Provision(t.Context(), bus.ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	keys, err := secret.LoadOrCreate(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := stage.OpenSources(t.Context(), conn, keys, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return conn, store
}

func TestTheLifeOfASourceOnABroker(t *testing.T) {
	conn, store := broker(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	for range 2 {
		if err := store.EnsureWorkflow(ctx, "posthorn"); err != nil {
			t.Fatal(err)
		}
	}
	changes, ended := make(chan source.Change, 16), make(chan error, 1)
	watching, unwatch := context.WithCancel(ctx)
	go func() { ended <- store.Watch(watching, func(change source.Change) { changes <- change }) }()
	next := func() source.Change {
		t.Helper()
		select {
		case change := <-changes:
			return change
		case <-ctx.Done():
			t.Fatal("no change came")
			return source.Change{}
		}
	}
	if change := next(); !change.Ready {
		t.Fatalf("%+v", change)
	}

	s := source.New()
	s.ID, s.Name, s.DefaultWorkflow, s.Address = "sales", "Sales", "general", "sales@example.org"
	s.Server, s.Port, s.Username = "mail.example.org", 993, "sales"
	for round := range 2 { // the second time over what deleting left in the bucket
		made, err := store.Create(ctx, s, "hunter2", "liisa")
		if err != nil {
			t.Fatal(err)
		}
		if change := next(); change.Source.Revision != made.Revision || change.Source.Epoch != made.Epoch {
			t.Fatalf("%+v", change)
		}
		_, err = store.Create(ctx, s, "hunter2", "matti")
		if fault.CodeOf(err) != fault.PolicyNotValid {
			t.Fatalf("a second one: %v", err)
		}
		renamed := made
		renamed.Name = "New name"
		renamed, err = store.Update(ctx, renamed, "", "liisa")
		if err != nil {
			t.Fatal(err)
		}
		if change := next(); change.Source.Name != "New name" || change.Source.Revision != renamed.Revision {
			t.Fatalf("%+v", change)
		}
		if _, err = store.Update(ctx, made, "", "matti"); fault.CodeOf(err) != fault.StoreConflict {
			t.Fatalf("an old revision: %v", err)
		}
		if err := store.Retry(ctx, "sales", "liisa"); err != nil {
			t.Fatal(err)
		}
		if change := next(); !change.Retry || change.Source.Revision != renamed.Revision {
			t.Fatalf("%+v", change)
		}
		if list, err := store.List(ctx); err != nil || len(list) != 1 {
			t.Fatalf("round %d: %v, %d sources", round, err, len(list))
		}
		if err := store.Delete(ctx, "sales", made.Revision, "matti"); fault.CodeOf(err) != fault.StoreConflict {
			t.Fatalf("an old revision: %v", err)
		}
		if err := store.Delete(ctx, "sales", renamed.Revision, "liisa"); err != nil {
			t.Fatal(err)
		}
		if change := next(); !change.Removed || change.ID != "sales" {
			t.Fatalf("%+v", change)
		}
		if _, err := store.Get(ctx, "sales"); fault.CodeOf(err) != fault.StoreNotFound {
			t.Fatalf("%v", err)
		}
	}
	unwatch()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	told(ctx, t, conn)
}

// told checks what the world was told: no event or record of the audit holds the password.
func told(ctx context.Context, t *testing.T, conn *bus.Conn) {
	t.Helper()
	for _, stream := range []contract.Stream{contract.StreamSources, contract.StreamAudit} {
		count := 0
		err := conn.Scan(ctx, stream, bus.ScanOptions{}, func(stored bus.Stored) error {
			count++
			if strings.Contains(string(stored.Body), "hunter2") || strings.Contains(string(stored.Body), "sealed") {
				t.Errorf("%s: %s", stored.Subject, stored.Body)
			}
			return nil
		})
		if err != nil || count < 6 {
			t.Errorf("%s: %v, %d messages", stream, err, count)
		}
	}
	last, err := conn.Last(ctx, contract.StreamSources, contract.SourceSubject(contract.SourceChanged, "sales"))
	if err != nil {
		t.Fatal(err)
	}
	var event contract.SourceEvent
	if err := json.Unmarshal(last.Body, &event); err != nil || strings.Join(event.Changed, ",") != "name" {
		t.Errorf("%v, %s", err, last.Body)
	}
}

func TestStatesOnABroker(t *testing.T) {
	conn, _ := broker(t)
	bucket, err := conn.Bucket(t.Context(), bus.BucketSourceState)
	if err != nil {
		t.Fatal(err)
	}
	states := source.NewStates(stage.Records(bucket), source.PartFetch)
	for _, want := range []source.StateName{source.StateConnecting, source.StateOK} {
		if err := states.Put(t.Context(), "sales", source.State{State: want}); err != nil {
			t.Fatal(err)
		}
		if all, err := states.All(t.Context()); err != nil || len(all) != 1 || all["sales"].State != want {
			t.Fatalf("%v, %v", err, all)
		}
	}
	for range 2 {
		if err := states.Delete(t.Context(), "sales"); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := states.All(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", err, all)
	}
}
