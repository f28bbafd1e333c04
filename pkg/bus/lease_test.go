package bus

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestOnlyOneHoldsALeaseAndTheNextGetsItAtOnceOnRelease(t *testing.T) {
	conn := provisioned(t)
	one, two := NewLeases(conn, LeaseConfig{Owner: "one"}), NewLeases(conn, LeaseConfig{Owner: "two"})
	first, err := one.Acquire(t.Context(), "fetcher.1")
	if err != nil {
		t.Fatal(err)
	}
	if !first.Fresh() {
		t.Error("a new lease is not fresh")
	}
	if _, err := two.Try(t.Context(), "fetcher.1"); !errors.Is(err, ErrLeased) {
		t.Errorf("second: %v, want ErrLeased", err)
	}
	other, err := two.Try(t.Context(), "fetcher.2")
	if err != nil {
		t.Errorf("another lease: %v", err)
	}
	waiting := make(chan *Lease)
	go func() {
		lease, err := two.Acquire(t.Context(), "fetcher.1")
		if err != nil {
			t.Error(err)
		}
		waiting <- lease
	}()
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := <-waiting
	if second == nil {
		return
	}
	if second.Token() <= first.Token() {
		t.Errorf("token %d after %d", second.Token(), first.Token())
	}
	if first.Fresh() || first.Context().Err() == nil {
		t.Error("a released lease is fresh")
	}
	if err := first.Release(t.Context()); err != nil {
		t.Errorf("released twice: %v", err)
	}
	if !second.Fresh() {
		t.Error("the second release of the first took the lease from its new holder")
	}
	for _, lease := range []*Lease{second, other} {
		if err := lease.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestALeaseIsRenewedPastItsTTL(t *testing.T) {
	conn := provisioned(t)
	lease, err := NewLeases(conn, LeaseConfig{Owner: "one", TTL: time.Second}).Try(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	began := lease.deadline()
	eventually(t, "it was renewed for three times its life", func() bool {
		return lease.deadline().Sub(began) > 3*time.Second
	})
	if !lease.Fresh() {
		t.Error("the lease is not fresh")
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTheLeaseOfADeadOwnerIsTakenOverAndItsZombieIsHarmless(t *testing.T) {
	server := store(t)
	if _, err := connected(t, server).Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	dying, living := connected(t, server), connected(t, server)
	config := LeaseConfig{Owner: "one", TTL: 2 * time.Second}
	zombie, err := NewLeases(dying, config).Try(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	dying.Close()
	<-zombie.Context().Done() // it gives up by itself
	if zombie.Fresh() {
		t.Error("a lease that was given up is fresh")
	}
	if _, err := NewLeases(living, config).Try(t.Context(), "key"); !errors.Is(err, ErrLeased) {
		t.Errorf("it gave up later than somebody else could take over: %v", err)
	}
	next, err := NewLeases(living, config).Acquire(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if next.Token() <= zombie.Token() {
		t.Errorf("token %d after %d", next.Token(), zombie.Token())
	}
	// The zombie awakes, still believing, and with a connection again.
	awake := &Lease{
		leases: NewLeases(living, config), key: "key", value: zombie.value, token: zombie.token,
		revision: zombie.revision, renewed: time.Now(),
	}
	awake.ctx, awake.cancel = context.WithCancel(t.Context())
	defer awake.cancel()
	if awake.renew() {
		t.Error("a zombie renewed a lease that is somebody else's")
	}
	if err := next.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestARenewalWhoseAnswerWasLostIsNotALostLease(t *testing.T) {
	conn := provisioned(t)
	lease, err := NewLeases(conn, LeaseConfig{Owner: "one"}).Try(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	before := lease.deadline()
	if _, err := lease.leases.write(t.Context(), "key", lease.value, lease.revision); err != nil { // nobody learns of it
		t.Fatal(err)
	}
	if !lease.renew() {
		t.Error("taken for lost")
	}
	if lease.deadline() != before {
		t.Error("its life was counted from the wrong renewal")
	}
	if !lease.renew() || !lease.deadline().After(before) {
		t.Error("not renewed afterwards")
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLeasesAreLostWithTheBrokersMemory(t *testing.T) {
	server := store(t)
	conn := connected(t, server)
	if _, err := conn.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	leases := NewLeases(conn, LeaseConfig{Owner: "one", TTL: 2 * time.Second})
	lease, err := leases.Try(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-lease.Context().Done()
	again, err := leases.Acquire(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(t.Context()); err != nil {
		t.Error(err)
	}
}
