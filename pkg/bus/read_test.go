package bus

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

func TestReadingFindsTheLastTheOneAndTheNumber(t *testing.T) {
	ctx := t.Context()
	conn := provisioned(t)
	if _, err := conn.Last(ctx, contract.StreamContactRequests, "contact-request.v1.>"); !errors.Is(err, ErrNotFound) {
		t.Errorf("last of an empty stream: %v", err)
	}
	subject := contract.ContactRequestSubject(contract.EventReceived, "w", "sales", "mail")
	first := publish(t, conn, subject, "1")
	second, err := conn.Publisher().Publish(ctx, Outgoing{
		Subject: contract.ContactRequestSubject(contract.EventRevised, "w", "sales", "mail"), Body: []byte("2"),
		Header: map[string]string{contract.HeaderType: "t"}, ID: "id",
	})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, conn, contract.ContactRequestSubject(contract.EventReceived, "w", "sales", "other"), "3")
	last, err := conn.Last(ctx, contract.StreamContactRequests, contract.ContactRequestFilter("sales", "mail"))
	if err != nil || last.Sequence != second.Sequence || string(last.Body) != "2" || last.Header["ce-type"] != "t" ||
		last.Header[contract.HeaderMsgID] != "id" || last.Time.IsZero() || last.Stream != contract.StreamContactRequests {
		t.Errorf("last: %+v, %v", last, err)
	}
	got, err := conn.Get(ctx, contract.StreamContactRequests, first.Sequence)
	if err != nil || got.Subject != subject || string(got.Body) != "1" || len(got.Header) > 0 || got.Time.IsZero() {
		t.Errorf("get: %+v, %v", got, err)
	}
	if _, err := conn.Get(ctx, contract.StreamContactRequests, 99); !errors.Is(err, ErrNotFound) {
		t.Errorf("get what is not there: %v", err)
	}
	for want, filters := range map[uint64][]string{
		3: nil, 2: {"contact-request.v1.received.>"}, 0: {"contact-request.v1.erased.>"},
		1: {"contact-request.v1.erased.>", "contact-request.v1.revised.>"},
	} {
		if got := count(t, conn, contract.StreamContactRequests, filters...); got != want {
			t.Errorf("count %v = %d, want %d", filters, got, want)
		}
	}
	if _, err := conn.Last(ctx, "NONE", ">"); fault.CodeOf(err) != fault.StoreMissing {
		t.Errorf("a missing stream: %v", err)
	}
}

func TestAScanReadsToTheEndInOrderAndStopsWhenTold(t *testing.T) {
	ctx := t.Context()
	conn := provisioned(t)
	var all []Outgoing
	for i := range 600 {
		all = append(all, Outgoing{Subject: contract.ParsedSubject(fmt.Sprintf("s%d", i%2)), Body: []byte("body")})
	}
	if err := conn.Publisher().PublishAll(ctx, all); err != nil {
		t.Fatal(err)
	}
	scan := func(options ScanOptions) (sequences []uint64, bodies int) {
		t.Helper()
		err := conn.Scan(ctx, contract.StreamParsed, options, func(stored Stored) error {
			sequences = append(sequences, stored.Sequence)
			bodies += len(stored.Body)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range sequences {
			if i > 0 && sequences[i] <= sequences[i-1] {
				t.Fatalf("%d after %d", sequences[i], sequences[i-1])
			}
		}
		return sequences, bodies
	}
	if got, bodies := scan(ScanOptions{}); len(got) != 600 || bodies != 2400 {
		t.Errorf("%d messages with %d bytes", len(got), bodies)
	}
	if got, bodies := scan(ScanOptions{FromSeq: 101, HeadersOnly: true}); len(got) != 500 || got[0] != 101 || bodies != 0 {
		t.Errorf("%d messages with %d bytes from 101", len(got), bodies)
	}
	if got, _ := scan(ScanOptions{Filters: []string{contract.ParsedSubject("s1")}}); len(got) != 300 {
		t.Errorf("%d messages of one source", len(got))
	}
	if got, _ := scan(ScanOptions{Since: time.Now().Add(time.Hour)}); len(got) != 0 {
		t.Errorf("%d messages from the future", len(got))
	}
	if got, _ := scan(ScanOptions{Filters: []string{"mail.v1.skipped.*"}}); len(got) != 0 {
		t.Errorf("%d messages of another kind", len(got))
	}
	enough := errors.New("enough")
	err := conn.Scan(ctx, contract.StreamParsed, ScanOptions{}, func(Stored) error { return enough })
	if !errors.Is(err, enough) {
		t.Errorf("%v, want the function's own error", err)
	}
	err = conn.Scan(ctx, "NONE", ScanOptions{}, func(Stored) error { return nil })
	if fault.CodeOf(err) != fault.StoreMissing {
		t.Errorf("a missing stream: %v", err)
	}
}

func TestFollowingHasNoGapOverARestart(t *testing.T) {
	server := store(t)
	conn := connected(t, server)
	if _, err := conn.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	publish(t, conn, contract.ParsedSubject("sales"), "old")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := func(options FollowOptions) (seen chan string, ended chan error) {
		seen, ended = make(chan string, 1000), make(chan error, 1)
		started := make(chan struct{})
		options.Started = func() { close(started) }
		go func() {
			ended <- conn.Follow(ctx, contract.StreamParsed, options, func(stored Stored) error {
				seen <- string(stored.Body)
				return nil
			})
		}()
		<-started
		return seen, ended
	}
	onlyNew, newEnded := follow(FollowOptions{})
	all, allEnded := follow(FollowOptions{All: true})
	if got := <-all; got != "old" {
		t.Errorf("first of all: %q", got)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		publish(t, conn, contract.ParsedSubject("sales"), fmt.Sprint(i))
		if i == 25 {
			if err := server.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 50 {
		for name, seen := range map[string]chan string{"new": onlyNew, "all": all} {
			if got := <-seen; got != fmt.Sprint(i) {
				t.Fatalf("%s: %q, want %d", name, got, i)
			}
		}
	}
	cancel()
	for _, ended := range []chan error{newEnded, allEnded} {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
