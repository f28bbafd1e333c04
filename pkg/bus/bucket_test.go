package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"posthorn/pkg/fault"
)

func bucket(t *testing.T, conn *Conn, name string) *Bucket {
	t.Helper()
	b, err := conn.Bucket(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAKeyIsWrittenOnlyOverTheRevisionThatWasRead(t *testing.T) {
	ctx := t.Context()
	b := bucket(t, provisioned(t), BucketSources)
	if _, err := b.Get(ctx, "sales"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such key: %v", err)
	}
	first, err := b.Create(ctx, "sales", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(ctx, "sales", []byte("x")); fault.CodeOf(err) != fault.StoreConflict {
		t.Errorf("created twice: %v", err)
	}
	second, err := b.Update(ctx, "sales", []byte("2"), first)
	if err != nil || second <= first {
		t.Errorf("update: %d, %v", second, err)
	}
	if _, err := b.Update(ctx, "sales", []byte("x"), first); fault.CodeOf(err) != fault.StoreConflict ||
		fault.As(err).Params["what"] != "sales" {
		t.Errorf("stale update: %v, %v", err, fault.As(err).Params)
	}
	if err := b.Delete(ctx, "sales", first); fault.CodeOf(err) != fault.StoreConflict {
		t.Errorf("stale delete: %v", err)
	}
	entry, err := b.Get(ctx, "sales")
	if err != nil || string(entry.Value) != "2" || entry.Revision != second || entry.Key != "sales" {
		t.Errorf("get: %+v, %v", entry, err)
	}
	if err := b.Delete(ctx, "sales", second); err != nil {
		t.Error(err)
	}
	if _, err := b.Get(ctx, "sales"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted key: %v", err)
	}
	if _, err := b.Create(ctx, "sales", []byte("3")); err != nil {
		t.Errorf("created after a deletion: %v", err)
	}
	if err := b.Purge(ctx, "sales"); err != nil {
		t.Error(err)
	}
	if keys, err := b.Keys(ctx, ""); err != nil || len(keys) > 0 {
		t.Errorf("keys: %v, %v", keys, err)
	}
	for _, bad := range []string{"", ".", "a..b", "a b", "a.*", "a.>"} {
		if _, err := b.Put(ctx, bad, nil); err == nil {
			t.Errorf("%q was taken as a key", bad)
		}
	}
}

func TestManyKeysAreWrittenTogetherAndListedByPrefix(t *testing.T) {
	ctx := t.Context()
	conn := provisioned(t)
	b := bucket(t, conn, BucketLedger)
	values := map[string][]byte{}
	for i := range 300 {
		values[fmt.Sprintf("s%d.page%d", i%3, i)] = fmt.Appendf(nil, "%d", i)
	}
	if err := b.PutMany(ctx, values); err != nil {
		t.Fatal(err)
	}
	entries, err := b.List(ctx, "s1.*")
	if err != nil || len(entries) != 100 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, entry := range entries {
		if string(values[entry.Key]) != string(entry.Value) {
			t.Errorf("%s = %q", entry.Key, entry.Value)
		}
	}
	if err := b.Erase(ctx, "s1.page1"); err != nil {
		t.Fatal(err)
	}
	keys, err := b.Keys(ctx, "s1.>")
	if err != nil || len(keys) != 99 || slices.Contains(keys, "s1.page1") {
		t.Errorf("%d keys after erasing one, %v", len(keys), err)
	}
	conn.publisher.mu.Lock()
	defer conn.publisher.mu.Unlock()
	if conn.publisher.batches == 0 {
		t.Error("no write to disk was shared")
	}
}

func TestAWatcherSeesWhatIsThereThenEveryChangeAlsoOverARestart(t *testing.T) {
	server := store(t)
	conn := connected(t, server)
	if _, err := conn.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	b := bucket(t, conn, BucketSources)
	put := func(key, value string) {
		t.Helper()
		if _, err := b.Put(t.Context(), key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	put("a", "1")
	put("b", "1")
	put("b", "2")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan string, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- b.Watch(ctx, "", func(entry Entry) error {
			if entry.Deleted {
				seen <- "deleted " + entry.Key
			} else {
				seen <- entry.Key + "=" + string(entry.Value)
			}
			return nil
		}, func() { seen <- "ready" })
	}()
	want := func(events ...string) {
		t.Helper()
		for _, event := range events {
			if got := <-seen; got != event {
				t.Fatalf("saw %q, want %q", got, event)
			}
		}
	}
	want("a=1", "b=2", "ready")
	put("c", "1")
	want("c=1")
	if err := b.Delete(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	want("deleted a")
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	put("b", "3")
	want("b=3")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAWatcherOfAnEmptyBucketIsReadyAtOnce(t *testing.T) {
	b := bucket(t, provisioned(t), BucketWorkflows)
	ctx, cancel := context.WithCancel(t.Context())
	if err := b.Watch(ctx, "", func(Entry) error { return nil }, cancel); err != nil {
		t.Error(err)
	}
}

func TestAMissingBucketIsNamed(t *testing.T) {
	_, err := connected(t, store(t)).Bucket(t.Context(), "ledger")
	if failure := fault.As(err); failure.Code != fault.StoreMissing || failure.Params["what"] != "the bucket ledger" {
		t.Errorf("%v, %v", err, fault.As(err).Params)
	}
}
