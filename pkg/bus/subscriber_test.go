package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// running runs a handler behind watermill's router until the test ends or stop is called, which waits for the end.
func running(
	t *testing.T, conn *Conn, config SubscriberConfig, handler message.NoPublishHandlerFunc,
) (subscriber *Subscriber, stop func()) {
	t.Helper()
	config.Stage = "parser"
	if config.Stream == "" {
		config.Stream, config.Durable = contract.StreamMail, DurableParser
	}
	subscriber = NewSubscriber(conn, config)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Minute}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	router.AddMiddleware(Settle)
	router.AddConsumerHandler("test", "topic", subscriber, handler)
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.WithoutCancel(t.Context())) }()
	<-router.Running()
	stop = sync.OnceFunc(func() {
		if err := router.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return subscriber, stop
}

func mails(t *testing.T, conn *Conn, n int) {
	t.Helper()
	for i := range n {
		publish(t, conn, contract.RawSubject("sales", fmt.Sprintf("mail%d", i)), fmt.Sprintf("body %d", i))
	}
}

// settled tells whether a consumer of MAIL is through with everything. (The numbers of [Conn.Lag] may trail a publish by
// a moment, so they cannot tell at the beginning.)
func settled(conn *Conn, durable string) func() bool {
	return func() bool {
		ctx := context.Background()
		stream, err := conn.js.Stream(ctx, string(contract.StreamMail))
		if err != nil {
			return false
		}
		consumer, err := stream.Consumer(ctx, durable)
		if err != nil {
			return false
		}
		last := stream.CachedInfo().State.LastSeq
		return last > 0 && consumer.CachedInfo().AckFloor.Stream >= last
	}
}

func deadLetters(t *testing.T, conn *Conn) []contract.DeadLetter {
	t.Helper()
	var letters []contract.DeadLetter
	err := conn.Scan(t.Context(), contract.StreamDeadLetters, ScanOptions{}, func(stored Stored) error {
		var letter contract.DeadLetter
		if err := json.Unmarshal(stored.Body, &letter); err != nil {
			return err
		}
		if want := contract.DeadLetterSubject(letter.Stage, letter.Source, letter.Mail); stored.Subject != want {
			t.Errorf("dead letter on %s, want %s", stored.Subject, want)
		}
		letters = append(letters, letter)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return letters
}

func soon(int, error) time.Duration { return 10 * time.Millisecond }

func TestAHandlerThatTakesLongerThanTheAckWaitRunsOnce(t *testing.T) {
	conn := provisioned(t)
	config := SubscriberConfig{
		Stream: contract.StreamMail, Durable: "slow", Filters: []string{"mail.v1.raw.*.*"},
		AckWait: time.Second, Heartbeat: 100 * time.Millisecond, Workers: 2,
	}
	mails(t, conn, 2)
	var runs atomic.Int64
	running(t, conn, config, func(*message.Message) error {
		runs.Add(1)
		<-time.After(2500 * time.Millisecond)
		return nil
	})
	eventually(t, "both are settled", settled(conn, "slow"))
	if runs.Load() != 2 {
		t.Errorf("ran %d times for 2 messages", runs.Load())
	}
}

func TestCloseFinishesWhatIsInHand(t *testing.T) {
	conn := provisioned(t)
	mails(t, conn, 8)
	started, release := make(chan struct{}, 8), make(chan struct{})
	var finished atomic.Int64
	_, stop := running(t, conn, SubscriberConfig{Workers: 4}, func(msg *message.Message) error {
		started <- struct{}{}
		<-release
		if err := msg.Context().Err(); err != nil {
			t.Errorf("context of a message in hand: %v", err)
		}
		finished.Add(1)
		return nil
	})
	for range 4 {
		<-started
	}
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	close(release)
	<-stopped
	eventually(t, "exactly what was not finished is left", func() bool {
		pending, inHand, err := conn.Lag(t.Context(), contract.StreamMail, DurableParser)
		return err == nil && int64(pending+inHand) == 8-finished.Load() //nolint:gosec // small
	})
}

func TestWhatIsNotFinishedInTimeIsGivenBack(t *testing.T) {
	conn := provisioned(t)
	mails(t, conn, 1)
	subscriber := NewSubscriber(conn, SubscriberConfig{
		Stage: "parser", Stream: contract.StreamMail, Durable: DurableParser, Drain: 10 * time.Millisecond,
	})
	messages, err := subscriber.Subscribe(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	<-messages // and never settled
	if err := subscriber.Close(); err != nil {
		t.Fatal(err)
	}
	if _, open := <-messages; open {
		t.Error("a message came after Close")
	}
	var ran atomic.Bool
	running(t, conn, SubscriberConfig{}, func(*message.Message) error { ran.Store(true); return nil })
	eventually(t, "the message is run by the next subscriber", ran.Load)
	eventually(t, "and settled", settled(conn, DurableParser))
}

func TestAPermanentErrorSetsTheMailAsideWhole(t *testing.T) {
	conn := provisioned(t)
	ack, err := conn.Publisher().Publish(t.Context(), Outgoing{
		Subject: contract.RawSubject("sales", "bad"), Body: []byte("bytes \x00\xff"),
		Header: map[string]string{contract.HeaderSHA256: "digest"},
	})
	if err != nil {
		t.Fatal(err)
	}
	running(t, conn, SubscriberConfig{}, func(*message.Message) error {
		return fault.New(fault.MailFailed, errors.New("secret content"), nil)
	})
	eventually(t, "the message is settled", settled(conn, DurableParser))
	letters := deadLetters(t, conn)
	if len(letters) != 1 {
		t.Fatalf("%d dead letters", len(letters))
	}
	got := letters[0]
	if got.Stage != "parser" || got.Source != "sales" || got.Mail != "bad" || got.Attempts != 1 ||
		got.Code != string(fault.MailFailed) || got.Reason == "" {
		t.Errorf("dead letter: %+v", got)
	}
	if kept := got.Message; kept.Stream != "MAIL" || kept.Sequence != ack.Sequence ||
		string(kept.Body) != "bytes \x00\xff" ||
		kept.Header[contract.HeaderSHA256] != "digest" || kept.Subject != contract.RawSubject("sales", "bad") {
		t.Errorf("kept: %+v", kept)
	}
}

func TestATemporaryErrorIsTriedAgainForEver(t *testing.T) {
	conn := provisioned(t)
	mails(t, conn, 1)
	var delivered []int
	var mu sync.Mutex
	config := SubscriberConfig{Delay: func(n int, _ error) time.Duration {
		mu.Lock()
		defer mu.Unlock()
		delivered = append(delivered, n)
		return time.Millisecond
	}}
	var runs atomic.Int64
	running(t, conn, config, func(*message.Message) error {
		if runs.Add(1) <= 30 {
			return errors.New("of unknown kind")
		}
		return nil
	})
	eventually(t, "the message is settled", settled(conn, DurableParser))
	mu.Lock()
	defer mu.Unlock()
	if len(delivered) != 30 || !slices.IsSorted(delivered) || delivered[29] != 30 {
		t.Errorf("attempts: %v", delivered)
	}
	if letters := deadLetters(t, conn); len(letters) > 0 {
		t.Errorf("set aside: %+v", letters)
	}
}

func TestPausesGrowUpToFiveMinutes(t *testing.T) {
	for attempt, want := range map[int]time.Duration{
		1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 9: 256 * time.Second, 10: 5 * time.Minute,
		1000: 5 * time.Minute,
	} {
		if got := growing(attempt, nil); got < want*8/10 || got > want*12/10 || got > 5*time.Minute {
			t.Errorf("after %d deliveries: %s, want about %s", attempt, got, want)
		}
	}
}

func TestAPanicIsAFailureAndTheThirdSetsTheMailAside(t *testing.T) {
	conn := provisioned(t)
	mails(t, conn, 1)
	var runs atomic.Int64
	running(t, conn, SubscriberConfig{Delay: soon}, func(*message.Message) error {
		runs.Add(1)
		panic("cannot do this")
	})
	eventually(t, "the message is settled", settled(conn, DurableParser))
	letters := deadLetters(t, conn)
	if len(letters) != 1 || letters[0].Code != string(fault.MailFailed) || runs.Load() != 3 {
		t.Errorf("after %d runs: %+v", runs.Load(), letters)
	}
}

func TestAPanicTellsItsPlaceAndNoContent(t *testing.T) {
	handler := Settle(func(*message.Message) ([]*message.Message, error) { panic("text of a mail") })
	_, err := handler(message.NewMessage("id", nil))
	cause := fmt.Sprint(errors.Unwrap(err))
	if !strings.Contains(cause, "subscriber_test.go:") || strings.Contains(cause, "text of a mail") {
		t.Errorf("cause: %s", cause)
	}
	handler = Settle(func(msg *message.Message) ([]*message.Message, error) { _ = msg.Payload[5]; return nil, nil })
	_, err = handler(message.NewMessage("id", nil))
	if cause := fmt.Sprint(errors.Unwrap(err)); !strings.Contains(cause, "index out of range") {
		t.Errorf("cause: %s", cause)
	}
}

// die lets a process die: a connection of its own reads with n workers, and is cut as soon as the message of that
// mail is in hand (and, at the first delivery, all others are). It returns which mails were in hand.
func die(t *testing.T, conn *Conn, n int, killer string) []string {
	t.Helper()
	subscriber := NewSubscriber(conn, SubscriberConfig{
		Stage: "parser", Stream: contract.StreamMail, Durable: "victims", Filters: []string{"mail.v1.raw.*.*"},
		Workers: n, AckWait: time.Second, Heartbeat: 200 * time.Millisecond, Delay: soon,
	})
	t.Cleanup(subscriber.doKill) // its goroutines, which in a real death end with the process
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	messages, err := subscriber.Subscribe(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	var inHand []string
	for {
		select {
		case msg := <-messages:
			stored, _ := StoredOf(msg)
			inHand = append(inHand, lastToken(stored.Subject))
			first := msg.Metadata.Get(MetaDelivered) == "1"
			if lastToken(stored.Subject) != killer && !first {
				msg.Ack() // an innocent that ran to its end
				continue
			}
			if first && len(inHand) < n {
				continue
			}
		case <-time.After(20 * time.Second):
			t.Fatal("nothing came")
		}
		// No farewell: nothing is settled, no mark removed.
		conn.Close()
		return inHand
	}
}

func TestAMailThatEndsTheProcessIsSetAsideAndThoseBesideItAreNot(t *testing.T) {
	server := store(t)
	first := connected(t, server)
	if _, err := first.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	mails(t, first, 4)
	if got := die(t, first, 4, "mail2"); len(got) != 4 {
		t.Fatalf("in hand at the first death: %v", got)
	}
	for death := range mostDeaths {
		got := die(t, connected(t, server), 4, "mail2")
		if got[len(got)-1] != "mail2" {
			t.Fatalf("death %d: the last in hand was %v", death, got)
		}
	}
	conn := connected(t, server)
	config := SubscriberConfig{
		Stream: contract.StreamMail, Durable: "victims", Workers: 4, AckWait: time.Second,
		Heartbeat: 200 * time.Millisecond, Delay: soon,
	}
	running(t, conn, config, func(msg *message.Message) error {
		if stored, _ := StoredOf(msg); lastToken(stored.Subject) == "mail2" {
			t.Error("the killer was run again")
		}
		return nil
	})
	eventually(t, "all are settled", settled(conn, "victims"))
	letters := deadLetters(t, conn)
	if len(letters) != 1 || letters[0].Mail != "mail2" || letters[0].Code != string(fault.MailCrashed) {
		t.Errorf("dead letters: %+v", letters)
	}
	eventually(t, "no mark is left", func() bool {
		keys, err := conn.bucket(bucketQuarantine).Keys(t.Context(), "")
		return err == nil && len(keys) == 0
	})
}

func TestAMessageInTheLaneRunsAlone(t *testing.T) {
	lane := NewLane()
	ctx := t.Context()
	leaveFirst, leaveSecond := lane.enter(ctx, false), lane.enter(ctx, false)
	var alone atomic.Bool
	entered := make(chan func())
	go func() {
		leave := lane.enter(ctx, true)
		alone.Store(true)
		entered <- leave
	}()
	eventually(t, "it waits", func() bool {
		lane.mu.Lock()
		defer lane.mu.Unlock()
		return lane.waiting == 1
	})
	beside := make(chan func())
	go func() { beside <- lane.enter(ctx, false) }()
	leaveFirst()
	if alone.Load() {
		t.Error("ran beside another")
	}
	leaveSecond()
	leaveAlone := <-entered
	select {
	case <-beside:
		t.Error("another ran beside it")
	default:
	}
	leaveAlone()
	(<-beside)()
	ended, cancel := context.WithCancel(ctx)
	hold := lane.enter(ctx, false)
	cancel()
	if lane.enter(ended, true) != nil {
		t.Error("entered although nobody waits for it any more")
	}
	hold()
	lane.enter(ctx, true)()
}

func TestASubscriberOfAMissingConsumerSaysWhatIsMissing(t *testing.T) {
	conn := provisioned(t)
	_, err := NewSubscriber(conn, SubscriberConfig{Stream: contract.StreamMail, Durable: "nobody"}).
		Subscribe(t.Context(), "")
	failure := fault.As(err)
	if failure.Code != fault.StoreMissing || failure.Params["what"] != "the consumer nobody" {
		t.Errorf("%v, %v", err, failure.Params)
	}
}

func TestASubscriberGoesOnAfterTheBrokerRestarted(t *testing.T) {
	server := store(t)
	conn := connected(t, server)
	if _, err := conn.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	var seen sync.Map
	subscriber, _ := running(t, conn, SubscriberConfig{Workers: 4}, func(msg *message.Message) error {
		seen.Store(string(msg.Payload), true)
		return nil
	})
	mails(t, conn, 20)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, conn, contract.RawSubject("sales", "after"), "after the restart")
	eventually(t, "the mail after the restart was seen", func() bool {
		_, ok := seen.Load("after the restart")
		return ok
	})
	eventually(t, "all are settled", settled(conn, DurableParser))
	for i := range 20 {
		if _, ok := seen.Load(fmt.Sprintf("body %d", i)); !ok {
			t.Errorf("mail %d was not seen", i)
		}
	}
	eventually(t, "the subscriber is ready", func() bool { return subscriber.Ready() == nil })
}
