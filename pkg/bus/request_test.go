package bus

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

func TestARequestGetsItsRepliesInOrderUntilDone(t *testing.T) {
	conn := connected(t, store(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 { // of two responders with one queue name one answers
		err := conn.Respond(ctx, "content.v1.raw.*.*", "parser", func(_ context.Context, request Request) error {
			for i := range 3 {
				header := map[string]string{contract.HeaderChunk: fmt.Sprint(i)}
				if err := request.Reply(header, append(request.Body, request.Header["x"]...)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	err := conn.Ask(ctx, "content.v1.raw.sales.mail", map[string]string{"x": "y"}, []byte("body"),
		func(header map[string]string, body []byte) (bool, error) {
			got = append(got, header[contract.HeaderChunk]+string(body))
			return len(got) == 3, nil
		})
	if err != nil || fmt.Sprint(got) != "[0bodyy 1bodyy 2bodyy]" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAnErrorOfTheOtherSideArrivesWithItsCodeAndNoCause(t *testing.T) {
	conn := connected(t, store(t))
	err := conn.Respond(t.Context(), "test", "q", func(context.Context, Request) error {
		return fault.New(fault.DNSFailed, errors.New("secret"), fault.Params{"host": "mail.example.org"})
	})
	if err != nil {
		t.Fatal(err)
	}
	err = conn.Ask(t.Context(), "test", nil, nil, func(map[string]string, []byte) (bool, error) {
		t.Error("a reply")
		return true, nil
	})
	failure := fault.As(err)
	if failure.Code != fault.DNSFailed || failure.Params["host"] != "mail.example.org" || failure.Unwrap() != nil {
		t.Errorf("%v, %v, %v", err, failure.Params, failure.Unwrap())
	}
}

func TestARequestThatNobodyAnswersSaysSo(t *testing.T) {
	conn := connected(t, store(t))
	err := conn.Ask(t.Context(), "nobody", nil, nil, func(map[string]string, []byte) (bool, error) { return true, nil })
	if fault.CodeOf(err) != fault.StoreNobody {
		t.Errorf("%v, want store.nobody_answers", err)
	}
}

func TestListenersHearWhatIsBroadcastWhileTheyListen(t *testing.T) {
	conn := connected(t, store(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard := make(chan string, 10)
	hear := func(subject string, body []byte) { heard <- subject + " " + string(body) }
	if err := conn.Listen(ctx, "trace.>", hear); err != nil {
		t.Fatal(err)
	}
	if err := conn.Broadcast("trace.sales", []byte("line")); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "trace.sales line" {
		t.Errorf("heard %q", got)
	}
}
