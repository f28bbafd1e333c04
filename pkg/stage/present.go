package stage

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"posthorn/pkg/bus"
)

// Present is what a running process tells of itself, for those who look from outside. See [Appear].
type Present struct {
	// Instance names the process; it is in the key of the record.
	Instance string    `json:"-"`
	Stages   []string  `json:"stages"`
	Version  string    `json:"version"`
	Since    time.Time `json:"since"`
	// Durable: acknowledged messages are known to survive a power cut.
	Durable bool `json:"durable"`
	// MaxStore is how many bytes the store may keep, 0 when that is not known.
	MaxStore int64 `json:"max_store,omitempty"`
	// AllowedPorts of mail servers.
	AllowedPorts ports `json:"allowed_ports,omitempty"`
	// Seen is when the process was heard last, by the broker's clock. Set by [Presents].
	Seen time.Time `json:"-"`
}

const presentPrefix = "presence."

// presentEvery is how often a process whose record was lost tries to be seen again.
const presentEvery = 2 * time.Second

// Appear makes this process visible to [Presents] until ctx ends: by a lease, so that one that dies disappears by
// itself.
// It returns once the process is visible, or is known not to be for now, and tries on in the background until done is
// closed, soon after ctx has ended.
func Appear(ctx context.Context, conn *bus.Conn, present Present, log *slog.Logger) (done <-chan struct{}, err error) {
	record, err := json.Marshal(present)
	if err != nil {
		return nil, err
	}
	leases := bus.NewLeases(conn, bus.LeaseConfig{Owner: string(record)})
	key := presentPrefix + keyToken(present.Instance)
	lease, err := leases.Try(ctx, key)
	if err != nil {
		log.Debug("this process is not visible yet", "error", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if lease != nil {
				select {
				case <-lease.Context().Done():
				case <-ctx.Done():
					Release(lease, log)
					return
				}
			}
			select {
			case <-time.After(presentEvery):
			case <-ctx.Done():
				return
			}
			if lease, err = leases.Try(ctx, key); err != nil {
				lease = nil
			}
		}
	}()
	return ended, nil
}

// ports are written as ranges, as somebody may allow them all.
type ports []int

// MarshalJSON writes [[110,110],[993,995]].
func (p ports) MarshalJSON() ([]byte, error) {
	var ranges [][2]int
	for _, port := range slices.Compact(slices.Sorted(slices.Values(p))) {
		if last := len(ranges) - 1; last >= 0 && ranges[last][1] == port-1 {
			ranges[last][1] = port
		} else {
			ranges = append(ranges, [2]int{port, port})
		}
	}
	return json.Marshal(ranges)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (p *ports) UnmarshalJSON(data []byte) error {
	var ranges [][2]int
	if err := json.Unmarshal(data, &ranges); err != nil {
		return err
	}
	*p = nil
	for _, r := range ranges {
		for port := max(r[0], 1); port <= min(r[1], 1<<16-1); port++ {
			*p = append(*p, port)
		}
	}
	return nil
}

// Presents lists the processes that are running on this broker, by instance.
func Presents(ctx context.Context, conn *bus.Conn) ([]Present, error) {
	bucket, err := conn.Bucket(ctx, bus.BucketLeases)
	if err != nil {
		return nil, err
	}
	entries, err := bucket.List(ctx, presentPrefix+">")
	if err != nil {
		if errors.Is(err, bus.ErrNotFound) {
			return nil, nil
		}
		return nil, err
	}
	var presents []Present
	for _, entry := range entries {
		value := string(entry.Value)
		if end := strings.LastIndexByte(value, ' '); end >= 0 { // what follows tells holders of a lease apart
			value = value[:end]
		}
		var present Present
		if json.Unmarshal([]byte(value), &present) != nil {
			continue // written by another version
		}
		present.Instance, present.Seen = strings.TrimPrefix(entry.Key, presentPrefix), entry.Time
		presents = append(presents, present)
	}
	return presents, nil
}

// keyToken makes one token of a key of any name.
func keyToken(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '_'
	}, name)
}
