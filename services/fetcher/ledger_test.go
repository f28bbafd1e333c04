package fetcher

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/bus/bustest"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
)

// books opens the ledger's bucket on a broker of its own.
func books(t *testing.T) *bus.Bucket {
	t.Helper()
	return bustest.Bucket(t, bustest.Start(t), bus.BucketLedger)
}

func open(t *testing.T, bucket *bus.Bucket, epoch string) *ledger {
	t.Helper()
	l, err := openLedger(t.Context(), bucket, "sales", epoch)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func save(t *testing.T, l *ledger) {
	t.Helper()
	if err := l.save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.saveMeta(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func at(uid uint32, mail string) *place {
	return &place{UIDValidity: 7, UID: uid, Mail: mail, Standing: taken, Since: 1}
}

func inbox(uids ...uint32) []mailbox.Entry {
	var entries []mailbox.Entry
	for _, uid := range uids {
		entries = append(entries, mailbox.Entry{UID: uid})
	}
	return entries
}

func TestALedgerKnowsAfterARestartWhatItKnewBefore(t *testing.T) {
	bucket := books(t)
	l := open(t, bucket, "e1")
	l.reset(7)
	for uid := uint32(1); uid <= 1000; uid++ {
		l.add(at(uid, fmt.Sprintf("mail%d", uid)))
	}
	save(t, l)
	again := open(t, bucket, "e1")
	for uid := uint32(1); uid <= 1000; uid++ {
		line, ok := again.find(mailbox.Entry{UID: uid})
		if !ok || line.Mail != fmt.Sprintf("mail%d", uid) {
			t.Fatalf("uid %d: %+v, %v", uid, line, ok)
		}
	}
	if len(again.pages) != 4 {
		t.Errorf("1000 places lie on %d pages", len(again.pages))
	}
	again.seen(nil, 1001, time.Now())
	save(t, again)
	again.seen(nil, 1001, time.Now().Add(keepGone+time.Hour))
	save(t, again)
	if empty := open(t, bucket, "e1"); len(empty.byID) != 0 || len(empty.pages) != 0 {
		t.Errorf("%d places on %d pages are left of an emptied mailbox", len(empty.byID), len(empty.pages))
	}
}

func TestTwoWritersOfOneLedgerCannotBothWrite(t *testing.T) {
	bucket := books(t)
	first := open(t, bucket, "e1")
	first.reset(7)
	first.add(at(1, "a"))
	save(t, first)
	second := open(t, bucket, "e1")
	first.add(at(2, "b"))
	save(t, first)
	second.add(at(3, "c"))
	if err := second.save(t.Context()); fault.CodeOf(err) != fault.StoreConflict {
		t.Fatalf("the late writer got %v", err)
	}
}

func TestAnotherEpochIsAnotherMailbox(t *testing.T) {
	bucket := books(t)
	l := open(t, bucket, "e1")
	l.reset(7)
	l.add(at(1, "a"))
	save(t, l)
	other := open(t, bucket, "e2")
	if _, known := other.find(mailbox.Entry{UID: 1}); known || other.meta.UIDValidity != 0 {
		t.Error("a place of the old account is known in the new one")
	}
}

func TestATwinIsNotTakenForAMailThatWasPutBack(t *testing.T) {
	for name, tc := range map[string]struct {
		uidNextWhenGone uint32
		uid             uint32
		putBack         bool
	}{
		"came later than the original left": {uidNextWhenGone: 20, uid: 20, putBack: true},
		"was there beside the original":     {uidNextWhenGone: 20, uid: 9, putBack: false},
		"server tells no UIDNEXT":           {uidNextWhenGone: 0, uid: 20, putBack: false},
	} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{}
			l.clear()
			l.reset(7)
			l.add(at(5, "mail"))
			l.seen(inbox(), tc.uidNextWhenGone, time.Now())
			if got := l.wasPutBack("mail", tc.uid); got != tc.putBack {
				t.Errorf("put back: %v", got)
			}
		})
	}
	t.Run("original still there", func(t *testing.T) {
		l := &ledger{}
		l.clear()
		l.reset(7)
		l.add(at(5, "mail"))
		l.seen(inbox(5), 20, time.Now())
		if l.wasPutBack("mail", 20) {
			t.Error("a twin of a mail that is still there counts as put back")
		}
	})
}

func TestAUIDLThatComesBackIsANewMail(t *testing.T) {
	l := &ledger{}
	l.clear()
	l.add(&place{UIDL: "abc", Size: 10, Mail: "mail", Standing: taken})
	l.seen(nil, 0, time.Now())
	if _, known := l.find(mailbox.Entry{UIDL: "abc", Size: 10}); known {
		t.Error("a vanished UIDL is still known")
	}
	l.add(&place{UIDL: "abc", Size: 10, Mail: "mail", Standing: taken})
	if _, known := l.find(mailbox.Entry{UIDL: "abc", Size: 11}); known {
		t.Error("the UIDL of another mail counts as known although the size differs")
	}
}

func sha256Of(raw string) [sha256.Size]byte { return sha256.Sum256([]byte(raw)) }
