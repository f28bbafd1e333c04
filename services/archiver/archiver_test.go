package archiver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
	"posthorn/pkg/bus/bustest"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/mailbox/mailboxtest"
	"posthorn/pkg/secret"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

// room is a running archiver with one source on a mail server of its own.
type room struct {
	t       *testing.T
	conn    *bus.Conn
	server  *mailboxtest.IMAP
	sources *source.Store
	keys    *secret.Keyring
	stop    func() // stops the archiver
	durable atomic.Bool
}

func start(t *testing.T, options mailboxtest.IMAPOptions, change func(*source.Source)) *room {
	t.Helper()
	server, err := mailboxtest.StartIMAP(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	r := &room{t: t, conn: bustest.Start(t), server: server}
	r.durable.Store(true)
	keys, err := secret.LoadOrCreate(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if r.sources, err = stage.OpenSources(t.Context(), r.conn, keys, []int{server.Port()}, log); err != nil {
		t.Fatal(err)
	}
	if err := r.sources.EnsureWorkflow(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	s := source.New()
	s.ID, s.Name, s.DefaultWorkflow, s.Address = "sales", "Sales", "general", "sales@example.org"
	s.Server, s.Port, s.Username, s.CA = "127.0.0.1", server.Port(), "user", string(server.CA().PEM())
	if change != nil {
		change(&s)
	}
	if _, err := r.sources.Create(t.Context(), s, "secret", "test"); err != nil {
		t.Fatal(err)
	}
	r.keys = keys
	r.stop = r.run()
	t.Cleanup(func() { r.stop() })
	return r
}

// run starts an archiver, and returns how to stop it.
func (r *room) run() (stop func()) {
	r.t.Helper()
	archiver, err := New(Config{
		Instance: "test", Mail: stage.MailConfig{Network: mailbox.PrivateOK, Timeout: 5 * time.Second},
		Durable: func(context.Context) (bool, error) { return r.durable.Load(), nil },
	}, stage.Deps{
		Conn: r.conn, Publisher: r.conn.Publisher(), Sources: r.sources, Keys: r.keys, Metrics: prometheus.NewRegistry(),
		Leases: bus.NewLeases(r.conn, bus.LeaseConfig{Owner: "test"}), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- archiver.Run(ctx, func() {}) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
	})
}

func (r *room) source() source.Source {
	r.t.Helper()
	s, err := r.sources.Get(r.t.Context(), "sales")
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// deliver puts a mail into the Inbox and into the MAIL stream, and returns the order for it.
func (r *room) deliver(n int, what contract.Disposition) contract.Dispose {
	r.t.Helper()
	raw := fmt.Appendf(nil, "Message-ID: <%d@example.net>\r\nSubject: Mail %d\r\n\r\nBody %d\r\n", n, n, n)
	uid := r.server.Deliver("user", "INBOX", raw)
	digest := sha256.Sum256(raw)
	key := contract.MailKey("sales", digest)
	subject := contract.RawSubject("sales", key)
	ack, err := r.conn.Publisher().Publish(r.t.Context(), bus.Outgoing{Subject: subject, ID: key, Body: raw})
	if err != nil {
		r.t.Fatal(err)
	}
	header, _, _ := strings.Cut(string(raw), "\r\n\r\n")
	return contract.Dispose{
		Mail: key, Source: contract.SourceRef{ID: "sales"}, Disposition: what,
		MessageID: fmt.Sprintf("<%d@example.net>", n),
		Place: contract.Place{
			Epoch: r.source().Epoch, Protocol: "imap", UIDValidity: r.validity(), UID: uid, Size: int64(len(raw)),
			Fingerprint: mailbox.Fingerprint([]byte(header + "\r\n\r\n")),
		},
		Raw: contract.Raw{
			Size: int64(len(raw)), SHA256: hex.EncodeToString(digest[:]), Stream: "MAIL", Sequence: ack.Sequence,
		},
	}
}

func (r *room) validity() uint32 {
	r.t.Helper()
	session, err := mailbox.Open(r.t.Context(), r.server.Settings("user"), mailbox.Read)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	return session.Status().UIDValidity
}

func (r *room) order(orders ...contract.Dispose) {
	r.t.Helper()
	for _, d := range orders {
		out, err := bus.DisposeOrder(d)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := r.conn.Publisher().Publish(r.t.Context(), out); err != nil {
			r.t.Fatal(err)
		}
	}
}

// outcome waits for what came of an order.
func (r *room) outcome(d contract.Dispose) contract.Disposed {
	r.t.Helper()
	var found *contract.Disposed
	r.eventually("the outcome of an order", func() bool {
		err := r.conn.Scan(r.t.Context(), contract.StreamDispositions, bus.ScanOptions{
			Filters: []string{contract.DisposedSubject("sales")},
		}, func(stored bus.Stored) error {
			var disposed contract.Disposed
			if err := json.Unmarshal(stored.Body, &disposed); err != nil {
				return err
			}
			if disposed.Mail == d.Mail && disposed.Place == d.Place {
				found = &disposed
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
		return found != nil
	})
	return *found
}

func (r *room) eventually(what string, check func() bool) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	for !check() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			r.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// wrong waits until the archiver says what is wrong with the source; "" for nothing.
func (r *room) wrong(code fault.Code) {
	r.t.Helper()
	states := source.NewStates(stage.Records(bustest.Bucket(r.t, r.conn, bus.BucketSourceState)), source.PartArchive)
	r.eventually("the state "+string(code), func() bool {
		state, err := states.Get(r.t.Context(), "sales")
		if err != nil {
			r.t.Fatal(err)
		}
		return state.ErrorCode() == code
	})
}

func (r *room) inbox() int { return len(r.server.Mails("user", "INBOX")) }

func TestOrdersAreCarriedOutAndAnswered(t *testing.T) {
	r := start(t, mailboxtest.IMAPOptions{}, nil)
	var orders []contract.Dispose
	for n := range 30 {
		orders = append(orders, r.deliver(n, contract.Archive))
	}
	r.order(orders...)
	for _, d := range orders {
		if got := r.outcome(d); got.Outcome != contract.OutcomeArchived || got.Mailbox != "Archive" {
			t.Fatalf("%+v", got)
		}
	}
	if r.inbox() != 0 || len(r.server.Mails("user", "Archive")) != 30 {
		t.Errorf("%d in the Inbox, %d in the archive", r.inbox(), len(r.server.Mails("user", "Archive")))
	}
}

func TestAMailIsDeletedOnlyIfTheOrderAndTodaysSettingsBothSaySo(t *testing.T) {
	for name, tc := range map[string]struct {
		ordered, today contract.Disposition
		outcome        string
	}{
		"both delete":              {contract.Delete, contract.Delete, contract.OutcomeDeleted},
		"ordered before a change":  {contract.Delete, contract.Archive, contract.OutcomeArchived},
		"delete is a later wish":   {contract.Archive, contract.Delete, contract.OutcomeArchived},
		"nothing is to be changed": {contract.Delete, contract.Leave, contract.OutcomeLeft},
		"not even moved":           {contract.Archive, contract.Leave, contract.OutcomeLeft},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, mailboxtest.IMAPOptions{}, func(s *source.Source) { s.AfterFetch = tc.today })
			d := r.deliver(1, tc.ordered)
			r.order(d)
			if got := r.outcome(d); got.Outcome != tc.outcome {
				t.Errorf("%+v", got)
			}
			left := 0
			if tc.outcome == contract.OutcomeLeft {
				left = 1
			}
			if r.inbox() != left {
				t.Errorf("%d mails in the Inbox", r.inbox())
			}
		})
	}
}

func TestAnOrderForAnotherMailboxTouchesNothing(t *testing.T) {
	r := start(t, mailboxtest.IMAPOptions{}, nil)
	epoch, validity, reused, gone := r.deliver(1, contract.Archive), r.deliver(2, contract.Archive),
		r.deliver(3, contract.Archive), r.deliver(4, contract.Archive)
	epoch.Place.Epoch = "other"
	validity.Place.UIDValidity--
	r.server.Replace("user", "INBOX", reused.Place.UID, []byte("Message-ID: <9@example.net>\r\nSubject: Mail 9\r\n\r\nBody 9\r\n"))
	gone.Place.UID += 1000
	r.order(epoch, validity, reused, gone)
	for want, d := range map[string]contract.Dispose{
		contract.OutcomeSuperseded: epoch, contract.OutcomeMismatch: reused, contract.OutcomeGone: gone,
	} {
		if got := r.outcome(d); got.Outcome != want {
			t.Errorf("want %s: %+v", want, got)
		}
	}
	if got := r.outcome(validity); got.Outcome != contract.OutcomeSuperseded {
		t.Errorf("%+v", got)
	}
	if r.inbox() != 4 {
		t.Errorf("%d of 4 mails in the Inbox", r.inbox())
	}
}

func TestNothingIsMovedWhileTheStoreMayLoseIt(t *testing.T) {
	r := start(t, mailboxtest.IMAPOptions{}, nil)
	r.durable.Store(false)
	d := r.deliver(1, contract.Archive)
	r.order(d)
	r.wrong(fault.StoreNotDurable)
	if r.inbox() != 1 {
		t.Fatal("moved although a power cut could lose it")
	}
	r.durable.Store(true)
	r.outcome(d)
	r.wrong("")
}

func TestAMailWhoseStoredBytesCannotBeReadBackStays(t *testing.T) {
	r := start(t, mailboxtest.IMAPOptions{}, nil)
	lost, well := r.deliver(1, contract.Archive), r.deliver(2, contract.Archive)
	if err := r.conn.SecureDelete(t.Context(), contract.StreamMail, lost.Raw.Sequence); err != nil {
		t.Fatal(err)
	}
	r.order(lost, well)
	r.outcome(well)
	r.wrong(fault.StoreCorrupt)
	if mails := r.server.Mails("user", "INBOX"); len(mails) != 1 || mails[0].UID != lost.Place.UID {
		t.Errorf("Inbox: %+v", mails)
	}
}

func TestOneMailThatIsRefusedDoesNotHoldUpTheOthers(t *testing.T) {
	r := start(t, mailboxtest.IMAPOptions{Refuse: func(verb, _ string, mails [][]byte) error {
		if verb == "MOVE" && slices.ContainsFunc(mails, func(raw []byte) bool { return strings.Contains(string(raw), "Mail 7") }) {
			return mailboxtest.No("", "not this one")
		}
		return nil
	}}, nil)
	var orders []contract.Dispose
	for n := range 20 {
		orders = append(orders, r.deliver(n, contract.Archive))
	}
	r.order(orders...)
	for n, d := range orders {
		if n != 7 {
			r.outcome(d)
		}
	}
	r.wrong(fault.ArchiveRefused)
	if r.inbox() != 1 {
		t.Errorf("%d mails in the Inbox", r.inbox())
	}
}

func TestWhatWasWrongBeforeARestartIsTakenBackWhenItHasPassed(t *testing.T) {
	var refusing atomic.Bool
	refusing.Store(true)
	r := start(t, mailboxtest.IMAPOptions{Refuse: func(verb, _ string, _ [][]byte) error {
		if verb == "MOVE" && refusing.Load() {
			return mailboxtest.No("", "not today")
		}
		return nil
	}}, nil)
	d := r.deliver(1, contract.Archive)
	r.order(d)
	r.wrong(fault.ArchiveRefused)
	r.stop()
	refusing.Store(false)
	r.stop = r.run()
	r.outcome(d)
	r.wrong("")
}

func TestNothingIsWrongWhenNoOrderWaits(t *testing.T) {
	r := start(t, mailboxtest.IMAPOptions{}, nil)
	d := r.deliver(1, contract.Archive)
	r.order(d)
	r.outcome(d)
	r.stop()
	// As after a session that closed all orders and then ended badly, such as by a QUIT that was not answered.
	states := source.NewStates(stage.Records(bustest.Bucket(t, r.conn, bus.BucketSourceState)), source.PartArchive)
	broken := fault.New(fault.ProtocolClosed, nil, fault.Params{"step": "QUIT"})
	if err := states.Put(t.Context(), "sales", source.State{
		State: source.StateDegraded, Error: source.NewStateError(broken, time.Now()),
	}); err != nil {
		t.Fatal(err)
	}
	r.wrong(fault.ProtocolClosed)
	r.stop = r.run()
	r.wrong("")
}

func TestADeletedSourceClosesItsOrdersAsLeft(t *testing.T) {
	r := start(t, mailboxtest.IMAPOptions{Refuse: func(verb, _ string, _ [][]byte) error {
		if verb == "MOVE" {
			return mailboxtest.No("", "not today")
		}
		return nil
	}}, nil)
	d := r.deliver(1, contract.Archive)
	r.order(d)
	r.wrong(fault.ArchiveRefused)
	if err := r.sources.Delete(t.Context(), "sales", r.source().Revision, "test"); err != nil {
		t.Fatal(err)
	}
	if got := r.outcome(d); got.Outcome != contract.OutcomeLeft {
		t.Errorf("%+v", got)
	}
	r.eventually("the consumer of its orders gone", func() bool {
		_, _, err := r.conn.Lag(t.Context(), contract.StreamDispositions, bus.DurableArchiver("sales"))
		return fault.CodeOf(err) == fault.StoreMissing
	})
}
