package fetcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/reply"
)

// rawMail is one whole mail on its way into the store: in memory when it is small, else in a file without a name.
type rawMail struct {
	data   []byte
	file   *os.File
	size   int64
	digest [sha256.Size]byte
	header []byte
	head   []byte // how the mail begins: what a server takes for its header is up to the server
}

// headerOf is the header block at the start of a mail.
func headerOf(head []byte) []byte {
	header, _ := reply.SplitHeader(head)
	return header
}

func (m *rawMail) discard() {
	if m.file != nil {
		_ = m.file.Close() // it has no name any more: nothing can be done about a failure, and nothing stays behind
	}
}

func (m *rawMail) open() io.Reader {
	if m.file == nil {
		return bytes.NewReader(m.data)
	}
	return io.NewSectionReader(m.file, 0, m.size)
}

// receive reads one body to its end. Its errors are those of the mailbox, but for a full spool directory, which is
// store.full.
func (c *cycle) receive(ctx context.Context, info mailbox.Info, body io.Reader) (*rawMail, error) {
	digest := sha256.New()
	limited := io.TeeReader(body, digest)
	head, err := io.ReadAll(io.LimitReader(limited, inlineLimit+1))
	if err != nil {
		return nil, err
	}
	mail := &rawMail{data: head, size: int64(len(head)), header: headerOf(head), head: head}
	if len(head) > inlineLimit {
		if mail.file, err = spoolFile(c.fetcher.cfg.SpoolDir); err != nil {
			return nil, err
		}
		if err := mail.fill(limited); err != nil {
			mail.discard()
			return nil, err
		}
	}
	if mail.size == 0 {
		return nil, fault.New(fault.ProtocolEmpty, nil, nil)
	}
	if c.shorter(info, mail.size) {
		mail.discard()
		return nil, fault.New(fault.ProtocolShort, nil, nil)
	}
	digest.Sum(mail.digest[:0])
	return mail, ctx.Err()
}

// shorter tells whether a mail has fewer bytes than announced. Some POP3 servers count the last line end and some do
// not; IMAP servers count line ends in different ways, so a twentieth less is normal there. A server that says the same
// three times is believed: some only estimate.
func (c *cycle) shorter(info mailbox.Info, size int64) bool {
	least := info.Size - info.Size/20 - 64
	if c.source.Type == mailbox.POP3 {
		least = info.Size - 2
	}
	if info.Size <= 0 || size >= least {
		return false
	}
	id := placeID(c.ledger.meta.UIDValidity, info.UID, info.UIDL, info.Size)
	c.drain.short[id]++
	return c.drain.short[id] < 3
}

// spoolFile makes a file that vanishes with its last descriptor, so that no crash leaves a mail lying about.
func spoolFile(dir string) (*os.File, error) {
	file, err := os.CreateTemp(dir, "spool-*")
	if err != nil {
		return nil, fault.New(fault.StoreFull, err, nil)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fault.New(fault.StoreFull, err, nil), file.Close())
	}
	return file, nil
}

func (m *rawMail) fill(rest io.Reader) error {
	if _, err := m.file.Write(m.data); err != nil {
		return fault.New(fault.StoreFull, err, nil)
	}
	w := &spoolWriter{file: m.file}
	n, err := io.Copy(w, rest)
	if w.failed != nil {
		return fault.New(fault.StoreFull, w.failed, nil)
	}
	m.size, m.data = m.size+n, nil
	return err
}

// spoolWriter tells a failure to write from a failure to read, which io.Copy does not.
type spoolWriter struct {
	file   *os.File
	failed error
}

func (w *spoolWriter) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	if err != nil {
		w.failed = err
	}
	return n, err
}
