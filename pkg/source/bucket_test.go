package source

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"posthorn/pkg/fault"
)

// memory is a bucket in memory.
type memory struct {
	mu       sync.Mutex
	entries  map[string]Entry
	log      []Entry // every write, in order
	revision uint64
	changed  chan struct{} // closed and replaced by every write
	fail     error         // answers every write, when set
}

func newMemory() *memory { return &memory{entries: map[string]Entry{}, changed: make(chan struct{})} }

func (m *memory) Get(_ context.Context, key string) (Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	entry, ok := m.entries[key]
	if !ok {
		return Entry{}, ErrNotFound
	}
	return entry, nil
}

func matches(filter, key string) bool {
	if filter == ">" {
		return true
	}
	ok, err := path.Match(strings.ReplaceAll(filter, ".", "/"), strings.ReplaceAll(key, ".", "/"))
	return err == nil && ok
}

func (m *memory) List(_ context.Context, filter string) ([]Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Entry
	for _, entry := range m.entries {
		if matches(filter, entry.Key) {
			found = append(found, entry)
		}
	}
	slices.SortFunc(found, func(a, b Entry) int { return cmp.Compare(a.Revision, b.Revision) })
	return found, nil
}

func (m *memory) write(key string, value []byte, expected *uint64, deleted bool) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	if expected != nil && m.entries[key].Revision != *expected {
		return 0, fault.New(fault.StoreConflict, nil, fault.Params{"what": key})
	}
	m.revision++
	entry := Entry{Key: key, Value: bytes.Clone(value), Revision: m.revision, Deleted: deleted}
	if deleted {
		delete(m.entries, key)
	} else {
		m.entries[key] = entry
	}
	m.log = append(m.log, entry)
	close(m.changed)
	m.changed = make(chan struct{})
	return m.revision, nil
}

func (m *memory) Put(_ context.Context, key string, value []byte) (uint64, error) {
	return m.write(key, value, nil, false)
}

func (m *memory) Create(_ context.Context, key string, value []byte) (uint64, error) {
	return m.write(key, value, new(uint64(0)), false)
}

func (m *memory) Update(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return m.write(key, value, &revision, false)
}

func (m *memory) Delete(_ context.Context, key string, revision uint64) error {
	_, err := m.write(key, nil, &revision, true)
	return err
}

func (m *memory) Watch(ctx context.Context, filter string, each func(Entry) error, ready func()) error {
	m.mu.Lock()
	there, next := slices.Collect(maps.Values(m.entries)), len(m.log)
	m.mu.Unlock()
	slices.SortFunc(there, func(a, b Entry) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, entry := range there {
		if matches(filter, entry.Key) {
			if err := each(entry); err != nil {
				return err
			}
		}
	}
	ready()
	for {
		m.mu.Lock()
		news := slices.Clone(m.log[next:])
		next = len(m.log)
		changed := m.changed
		m.mu.Unlock()
		for _, entry := range news {
			if matches(filter, entry.Key) {
				if err := each(entry); err != nil {
					return err
				}
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// writes counts the writes so far.
func (m *memory) writes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.log)
}
