package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// chunkSize is the size of the pieces that objects are stored in (measured: larger gains nothing, smaller is slower).
const chunkSize = 512 << 10

// Objects is a bucket of large byte strings, in the format of the NATS object store. Both directions stream: memory
// holds a chunk or two, however large the object is.
type Objects struct {
	conn *Conn
	name string
}

// Objects opens an object bucket; store.not_provisioned when it is missing.
func (c *Conn) Objects(ctx context.Context, bucket string) (*Objects, error) {
	began := time.Now()
	if _, err := c.js.Stream(ctx, "OBJ_"+bucket); err != nil {
		return nil, c.fault(err, began, "the object bucket "+bucket)
	}
	return &Objects{conn: c, name: bucket}, nil
}

func (o *Objects) stream() contract.Stream { return contract.Stream("OBJ_" + o.name) }

func (o *Objects) metaSubject(name string) string {
	return "$O." + o.name + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

func (o *Objects) chunkSubject(id string) string { return "$O." + o.name + ".C." + id }

// Put stores size bytes under a name and returns once all are stored. The same bytes under the same name are not stored
// again; other bytes replace the old ones. A reader that ends too early, or does not end, is an error.
func (o *Objects) Put(ctx context.Context, name string, from io.Reader, size int64) error {
	old, _, err := o.info(ctx, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	seeker, seekable := from.(io.ReadSeeker)
	if old != nil && seekable && old.Size == uint64(size) { //nolint:gosec // sizes are not negative
		same, err := o.same(seeker, old)
		if err != nil || same {
			return err
		}
	}
	info := jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: chunkSize}},
		Bucket:     o.name, NUID: nuid.Next(),
	}
	digest := sha256.New()
	if err := o.putChunks(ctx, &info, digest, io.LimitReader(from, size+1)); err != nil {
		o.forget(ctx, info.NUID)
		return err
	}
	if info.Size != uint64(size) { //nolint:gosec // sizes are not negative
		o.forget(ctx, info.NUID)
		return fmt.Errorf("object: %d bytes were announced, %d came", size, info.Size)
	}
	info.Digest = jetstream.GetObjectDigestValue(digest)
	if old != nil && old.Digest == info.Digest {
		o.forget(ctx, info.NUID)
		return nil
	}
	meta, err := json.Marshal(info)
	if err != nil {
		return err
	}
	_, err = o.conn.publisher.Publish(ctx, Outgoing{
		Subject: o.metaSubject(name), Body: meta,
		Header: map[string]string{jetstream.MsgRollup: jetstream.MsgRollupSubject},
	})
	if err != nil {
		return err
	}
	if old != nil {
		o.forget(ctx, old.NUID)
	}
	return nil
}

// same tells whether a reader holds the bytes of an object, and rewinds it.
func (o *Objects) same(from io.ReadSeeker, info *jetstream.ObjectInfo) (bool, error) {
	start, err := from.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, fmt.Errorf("object: %w", err)
	}
	digest := sha256.New()
	if _, err := io.Copy(digest, from); err != nil {
		return false, fmt.Errorf("object: %w", err)
	}
	if jetstream.GetObjectDigestValue(digest) == info.Digest {
		return true, nil
	}
	_, err = from.Seek(start, io.SeekStart)
	return false, err
}

func (o *Objects) putChunks(
	ctx context.Context, info *jetstream.ObjectInfo, digest hash.Hash, from io.Reader,
) error {
	chunk := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(from, chunk)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("object: %w", err)
		}
		if n > 0 {
			_, _ = digest.Write(chunk[:n]) // a hash never fails to write
			// One after the other: the order of the chunks is that of the stream. The id makes a second attempt harmless.
			_, err := o.conn.publisher.Publish(ctx, Outgoing{
				Subject: o.chunkSubject(info.NUID), Body: chunk[:n],
				ID: info.NUID + "." + strconv.FormatUint(uint64(info.Chunks), 10),
			})
			if err != nil {
				return err
			}
			info.Size += uint64(n)
			info.Chunks++
		}
		if err != nil {
			return nil //nolint:nilerr // the end was reached
		}
	}
}

// forget erases chunks that belong to no object any more.
func (o *Objects) forget(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := o.eraseChunks(ctx, id); err != nil {
		o.conn.log.Warn("chunks of a replaced or unfinished object not removed", "error", err)
	}
}

// eraseChunks removes the chunks of an object and overwrites their bytes on disk.
func (o *Objects) eraseChunks(ctx context.Context, id string) error {
	began := time.Now()
	for next := uint64(1); ; {
		stored, err := o.conn.fromLeader(ctx, o.stream(), map[string]any{
			"seq": next, "next_by_subj": o.chunkSubject(id),
		})
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return o.conn.fault(err, began, string(o.stream()))
		}
		if err := o.conn.SecureDelete(ctx, o.stream(), stored.Sequence); err != nil {
			return err
		}
		next = stored.Sequence + 1
	}
}

// info reads the meta message of an object, and its sequence.
func (o *Objects) info(ctx context.Context, name string) (*jetstream.ObjectInfo, uint64, error) {
	stored, err := o.conn.Last(ctx, o.stream(), o.metaSubject(name))
	if err != nil {
		return nil, 0, err
	}
	var info jetstream.ObjectInfo
	if err := json.Unmarshal(stored.Body, &info); err != nil {
		return nil, 0, fault.New(fault.StoreCorrupt, fmt.Errorf("object: %w", err), nil)
	}
	if info.Deleted {
		return nil, stored.Sequence, ErrNotFound
	}
	return &info, stored.Sequence, nil
}

// Open reads an object. [ErrNotFound] when there is none. The reader compares the SHA-256 when it comes to the end: a
// difference is store.corrupt instead of io.EOF, so nothing may be done with the bytes before the end was seen. Its
// reads use ctx.
func (o *Objects) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	info, _, err := o.info(ctx, name)
	if err != nil {
		return nil, err
	}
	return &objectReader{ctx: ctx, objects: o, info: info, digest: sha256.New(), next: 1}, nil
}

type objectReader struct {
	ctx     context.Context //nolint:containedctx // a reader has nowhere else to get it from
	objects *Objects
	info    *jetstream.ObjectInfo
	digest  hash.Hash
	chunk   bytes.Reader
	size    uint64
	next    uint64 // sequence from which on to look for the next chunk
	failed  error
}

// Read implements io.Reader.
func (r *objectReader) Read(p []byte) (int, error) {
	for r.failed == nil && r.chunk.Len() == 0 {
		r.failed = r.fetch()
	}
	if r.failed != nil {
		return 0, r.failed
	}
	return r.chunk.Read(p)
}

// fetch gets the next chunk, or finds that the end was reached.
func (r *objectReader) fetch() error {
	corrupt := func(what string) error {
		return fault.New(fault.StoreCorrupt, errors.New("object: "+what), nil)
	}
	if r.size == r.info.Size {
		if jetstream.GetObjectDigestValue(r.digest) != r.info.Digest {
			return corrupt("digest differs")
		}
		return io.EOF
	}
	began := time.Now()
	stored, err := r.objects.conn.direct(r.ctx, r.objects.stream(), map[string]any{
		"seq": r.next, "next_by_subj": r.objects.chunkSubject(r.info.NUID),
	})
	if errors.Is(err, ErrNotFound) {
		return corrupt("a chunk is missing")
	}
	if err != nil {
		return r.objects.conn.fault(err, began, string(r.objects.stream()))
	}
	r.size += uint64(len(stored.Body))
	if r.size > r.info.Size {
		return corrupt("longer than it was")
	}
	r.next = stored.Sequence + 1
	_, _ = r.digest.Write(stored.Body) // a hash never fails to write
	r.chunk.Reset(stored.Body)
	return nil
}

// Close implements io.Closer.
func (r *objectReader) Close() error {
	if r.failed == nil {
		r.failed = io.ErrClosedPipe
	}
	return nil
}

// SecureDelete removes an object and overwrites all its bytes on disk. It is no error when there is none.
func (o *Objects) SecureDelete(ctx context.Context, name string) error {
	info, sequence, err := o.info(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// The chunks first: as long as the meta message is there, an interrupted deletion can be repeated.
	if err := o.eraseChunks(ctx, info.NUID); err != nil {
		return err
	}
	return o.conn.SecureDelete(ctx, o.stream(), sequence)
}
