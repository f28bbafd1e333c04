package bus

import (
	"testing"
	"time"

	"posthorn/pkg/contract"
)

func TestOrdersComeInBatchesAndStayUntilTheyAreSettled(t *testing.T) {
	ctx := t.Context()
	conn := provisioned(t)
	for range 5 {
		publish(t, conn, contract.DisposeSubject("sales"), "order")
	}
	publish(t, conn, contract.DisposeSubject("support"), "of another source")
	orders, err := conn.Orders(ctx, contract.StreamDispositions, "archiver-sales", contract.DisposeSubject("sales"))
	if err != nil {
		t.Fatal(err)
	}
	pending := func(want uint64) {
		t.Helper()
		eventually(t, "the right number is pending", func() bool {
			got, err := orders.Pending(ctx)
			return err == nil && got == want
		})
	}
	pending(5)
	got, err := orders.Fetch(ctx, 3, time.Minute)
	if err != nil || len(got) != 3 {
		t.Fatalf("fetched %d, %v", len(got), err)
	}
	stop := orders.Keep(ctx, got)
	defer stop()
	if err := got[0].InProgress(); err != nil {
		t.Error(err)
	}
	if err := got[0].Ack(ctx); err != nil {
		t.Error(err)
	}
	if err := got[1].Nak(ctx, 0); err != nil {
		t.Error(err)
	}
	if err := got[2].Nak(ctx, time.Hour); err != nil {
		t.Error(err)
	}
	stop()
	pending(4)
	rest := map[uint64]bool{}
	for len(rest) < 3 {
		more, err := orders.Fetch(ctx, 10, 10*time.Second)
		if err != nil || len(more) == 0 {
			t.Fatalf("fetched %d, %v", len(more), err)
		}
		for _, delivery := range more {
			rest[delivery.Sequence] = true
			if again := delivery.Sequence == got[1].Sequence; again != (delivery.Delivered > 1) {
				t.Errorf("order %d was delivered %d times", delivery.Sequence, delivery.Delivered)
			}
			if err := delivery.Ack(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	pending(1)
	if more, err := orders.Fetch(ctx, 10, 50*time.Millisecond); err != nil || len(more) > 0 {
		t.Errorf("fetched %d although none is due, %v", len(more), err)
	}
	for range 2 {
		if err := conn.DeleteConsumer(ctx, contract.StreamDispositions, "archiver-sales"); err != nil {
			t.Error(err)
		}
	}
}
