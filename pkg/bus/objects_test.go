package bus

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"posthorn/pkg/contract"
	"posthorn/pkg/embeddednats"
	"posthorn/pkg/fault"
)

func objects(t *testing.T, conn *Conn) *Objects {
	t.Helper()
	o, err := conn.Objects(t.Context(), contract.ObjectBucket)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// noise is size bytes that compress badly, the same for every reader.
func noise(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
}

// liveHeap is the number of bytes in use, garbage not counted.
func liveHeap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// sampled looks at the heap whenever another two megabytes were read.
type sampled struct {
	io.Reader

	most *uint64
	read int
}

func (s *sampled) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if before := s.read; before>>21 != (before+n)>>21 {
		*s.most = max(*s.most, liveHeap())
	}
	s.read += n
	return n, err
}

func TestALargeObjectStreamsBothWaysInLittleMemory(t *testing.T) {
	const size = 50 << 20
	conn := provisioned(t)
	o := objects(t, conn)
	var most uint64
	before := liveHeap()
	from := &sampled{Reader: noise(size), most: &most}
	if err := o.Put(t.Context(), "large", from, size); err != nil {
		t.Fatal(err)
	}
	back, err := o.Open(t.Context(), "large")
	if err != nil {
		t.Fatal(err)
	}
	got, want := sha256.New(), sha256.New()
	if n, err := io.Copy(got, &sampled{Reader: back, most: &most}); err != nil || n != size {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	if err := back.Close(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(want, noise(size)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("other bytes came back")
	}
	// The embedded server's cache of recent blocks is in here too.
	if grown := int64(most) - int64(before); grown > size*4/5 { //nolint:gosec // small
		t.Errorf("the heap grew by %d MB for an object of %d MB", grown>>20, size>>20)
	}
}

func TestTheSameObjectIsStoredOnceAndOtherBytesReplaceIt(t *testing.T) {
	conn := provisioned(t)
	o := objects(t, conn)
	put := func(from io.Reader, size int) error { return o.Put(t.Context(), "mail", from, int64(size)) }
	read := func() string {
		from, err := o.Open(t.Context(), "mail")
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(from)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if _, err := o.Open(t.Context(), "mail"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such object: %v", err)
	}
	if err := put(bytes.NewReader([]byte("one")), 3); err != nil {
		t.Fatal(err)
	}
	messages := count(t, conn, o.stream())
	last, err := conn.Last(t.Context(), o.stream(), "$O.mail.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := put(bytes.NewReader([]byte("one")), 3); err != nil { // seekable: not even sent
		t.Fatal(err)
	}
	if again, err := conn.Last(t.Context(), o.stream(), "$O.mail.>"); err != nil || again.Sequence != last.Sequence {
		t.Errorf("the same bytes were stored again: %v", err)
	}
	if err := put(io.MultiReader(bytes.NewReader([]byte("one"))), 3); err != nil {
		t.Fatal(err)
	}
	if got := count(t, conn, o.stream()); got != messages {
		t.Errorf("%d messages, had %d", got, messages)
	}
	if err := put(bytes.NewReader([]byte("other")), 5); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "other" {
		t.Errorf("read %q", got)
	}
	for _, wrong := range []int{4, 6} {
		if err := put(bytes.NewReader([]byte("five!")), wrong); err == nil {
			t.Errorf("5 bytes were taken for %d", wrong)
		}
	}
	if got := count(t, conn, o.stream()); got != messages || read() != "other" {
		t.Errorf("%d messages after refused objects, had %d", got, messages)
	}
	if err := o.Put(t.Context(), "empty", bytes.NewReader(nil), 0); err != nil {
		t.Error(err)
	}
	if from, err := o.Open(t.Context(), "empty"); err != nil {
		t.Error(err)
	} else if data, err := io.ReadAll(from); err != nil || len(data) > 0 {
		t.Errorf("empty object: %q, %v", data, err)
	}
}

func TestADamagedObjectIsToldBeforeTheEnd(t *testing.T) {
	conn := provisioned(t)
	o := objects(t, conn)
	const size = 3 * chunkSize
	if err := o.Put(t.Context(), "mail", noise(size), size); err != nil {
		t.Fatal(err)
	}
	if err := conn.SecureDelete(t.Context(), o.stream(), 2); err != nil {
		t.Fatal(err)
	}
	from, err := o.Open(t.Context(), "mail")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, from); fault.CodeOf(err) != fault.StoreCorrupt {
		t.Errorf("read to the end: %v, want store.corrupt", err)
	}
}

// onDisk tells whether a text is in any file below a directory.
func onDisk(t *testing.T, dir, text string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path) //nolint:gosec // the test's own directory
		if err != nil {
			return err
		}
		found = found || bytes.Contains(data, []byte(text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWhatIsDeletedSecurelyIsNotOnDiskAnyMore(t *testing.T) {
	dir := t.TempDir()
	start := func() (*embeddednats.Server, *Conn) {
		server, err := embeddednats.Start(t.Context(), embeddednats.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Shutdown)
		return server, connected(t, server)
	}
	server, conn := start()
	if _, err := conn.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	const (
		inMessage, inObject = "PLAIN-IN-A-MESSAGE", "PLAIN-IN-AN-OBJECT"
		inKey, kept         = "PLAIN-IN-A-KEY", "PLAIN-THAT-STAYS"
	)
	o := objects(t, conn)
	large := bytes.Repeat([]byte(inObject), 3*chunkSize/len(inObject))
	if err := o.Put(t.Context(), "mail", bytes.NewReader(large), int64(len(large))); err != nil {
		t.Fatal(err)
	}
	ack := publish(t, conn, contract.RawSubject("sales", "gone"), inMessage)
	publish(t, conn, contract.RawSubject("sales", "kept"), kept)
	sent := bucket(t, conn, BucketSentIndex)
	if _, err := sent.Put(t.Context(), "sales.id", []byte(inKey)); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{inMessage, inObject, inKey, kept} {
		if !onDisk(t, dir, text) {
			t.Fatalf("%s is not on disk to begin with", text)
		}
	}
	for range 2 { // a second time is no error
		if err := o.SecureDelete(t.Context(), "mail"); err != nil {
			t.Fatal(err)
		}
		if err := conn.SecureDelete(t.Context(), contract.StreamMail, ack.Sequence); err != nil {
			t.Fatal(err)
		}
		if err := sent.Erase(t.Context(), "sales.id"); err != nil {
			t.Fatal(err)
		}
	}
	conn.Close()
	server.Shutdown()
	for _, text := range []string{inMessage, inObject, inKey} {
		if onDisk(t, dir, text) {
			t.Errorf("%s is still on disk", text)
		}
	}
	_, conn = start()
	stored, err := conn.Last(t.Context(), contract.StreamMail, contract.RawSubject("sales", "kept"))
	if err != nil || string(stored.Body) != kept {
		t.Errorf("after a restart: %v, %v", stored, err)
	}
	if _, err := conn.Get(t.Context(), contract.StreamMail, ack.Sequence); !errors.Is(err, ErrNotFound) {
		t.Errorf("the deleted message: %v", err)
	}
	if _, err := objects(t, conn).Open(t.Context(), "mail"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the deleted object: %v", err)
	}
	changes, err := conn.Provision(t.Context(), ProvisionConfig{})
	if err != nil || len(changes) != 1 || changes[0] != "created the stream KV_leases" { // all the rest is on disk
		t.Errorf("provisioned after a restart: %v, %v", changes, err)
	}
}
