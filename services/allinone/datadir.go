package allinone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// dataDir is the directory of one process. It remembers which store it belongs to and how far that store had come, so
// that an emptied or older store is noticed before anything is fetched, moved or deleted.
type dataDir struct {
	path string
	lock *os.File
}

// storeMark is the content of DATA/store.json.
type storeMark struct {
	ID string `json:"id"`
	// Last is the last sequence seen of the streams that are never emptied from their end.
	Last map[contract.Stream]uint64 `json:"last"`
}

// openData makes the directory for this user alone and locks it against a second process.
func openData(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{path, filepath.Join(path, "spool")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("the data directory %s cannot be made: %w; name another with --data", path, err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be used: %w; name another with --data", path, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(
			fmt.Errorf("the data directory %s is in use by another Posthorn process; stop it, or name another with --data",
				path), lock.Close())
	}
	return &dataDir{path: path, lock: lock}, nil
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

func (d *dataDir) close() error { return d.lock.Close() }

// belongs compares the mark with the store, before anything is provisioned. A directory without a mark adopts the store
// that it finds. It returns store.foreign when the store is another one, is empty, or has lost its newest messages.
func (d *dataDir) belongs(ctx context.Context, conn *bus.Conn) error {
	mark, err := d.read()
	if err != nil || mark.ID == "" {
		return err
	}
	id, err := conn.FindStoreID(ctx)
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return err
	}
	if id != mark.ID {
		return fault.New(fault.StoreForeign, fmt.Errorf("the store's mark is %q, this directory's is %q", id, mark.ID), nil)
	}
	for stream, last := range mark.Last {
		now, err := conn.LastSequence(ctx, stream)
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return err
		}
		if now < last {
			return fault.New(fault.StoreForeign,
				fmt.Errorf("stream %s ends at %d, but had come to %d before", stream, now, last), nil)
		}
	}
	return nil
}

// adopt writes the mark of the store.
func (d *dataDir) adopt(ctx context.Context, conn *bus.Conn) error {
	id, _, err := conn.StoreID(ctx)
	if err != nil {
		return err
	}
	mark := storeMark{ID: id, Last: map[contract.Stream]uint64{}}
	for _, stream := range []contract.Stream{contract.StreamMail, contract.StreamContactRequests} {
		if mark.Last[stream], err = conn.LastSequence(ctx, stream); err != nil {
			return err
		}
	}
	data, err := json.Marshal(mark)
	if err != nil {
		return err
	}
	return writeFile(d.file("store.json"), data)
}

// follow keeps the mark up to date until ctx ends.
func (d *dataDir) follow(ctx context.Context, conn *bus.Conn, failed func(error)) {
	ticker := time.NewTicker(30 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := d.adopt(ctx, conn); err != nil && ctx.Err() == nil {
				failed(err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (d *dataDir) read() (storeMark, error) {
	var mark storeMark
	data, err := os.ReadFile(d.file("store.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return mark, nil
	}
	if err != nil {
		return mark, err
	}
	if err := json.Unmarshal(data, &mark); err != nil {
		return mark, fmt.Errorf("%s cannot be read: %w", d.file("store.json"), err)
	}
	return mark, nil
}

// writeFile replaces a file as a whole, readable by this user alone.
func writeFile(path string, data []byte) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
