package mailbox_test

import (
	"testing"
	"time"

	"posthorn/pkg/mailbox"
	"posthorn/pkg/mailbox/mailboxtest"
)

func TestAMailWithoutAUsableDateDoesNotEndTheSession(t *testing.T) {
	server, err := mailboxtest.StartIMAP(mailboxtest.IMAPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	server.DeliverAt("user", "INBOX", []byte("Subject: x\r\n\r\nx\r\n"), time.Time{}) // 1 January of the year 1
	server.Deliver("user", "INBOX", []byte("Subject: y\r\n\r\ny\r\n"))
	session, err := mailbox.Open(t.Context(), server.Settings("user"), mailbox.Read)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	entries, err := session.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	infos, err := session.Describe(t.Context(), entries)
	if err != nil || len(infos) != 2 {
		t.Fatalf("%+v, %v", infos, err)
	}
	if !infos[0].InternalDate.IsZero() || infos[1].InternalDate.IsZero() {
		t.Errorf("%v, %v", infos[0].InternalDate, infos[1].InternalDate)
	}
}
