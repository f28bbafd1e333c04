package fetcher

import (
	"slices"
	"time"

	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
)

const (
	// mostDoubts is how many sessions a mail may end before the others no longer wait for it.
	mostDoubts = 3
	// doubtedFor is how long such a mail rests before it is tried again.
	doubtedFor = 10 * time.Minute
)

// doubts remembers mails that were being fetched when a session ended over what the server sent. They come after all
// others, each alone, so that one mail that cannot be fetched does not keep the rest from being taken in.
type doubts map[string]*doubt

type doubt struct {
	times int
	last  time.Time
	why   error
}

// doubt notes the mails of a batch that were not stored when the session ended.
func (c *cycle) doubt(mails []mailbox.Info, err error) {
	if class := fault.As(err).Code.Class(); class != "protocol" && class != "mailbox" {
		return // the network, the store, the limits of the provider: no mail's fault
	}
	for _, info := range mails {
		if _, known := c.ledger.find(info.Entry); known {
			continue
		}
		id := placeID(c.ledger.meta.UIDValidity, info.UID, info.UIDL, info.Size)
		d := c.drain.doubts[id]
		if d == nil {
			d = &doubt{}
			c.drain.doubts[id] = d
		}
		d.times++
		d.last, d.why = c.fetcher.now(), err
	}
}

func (d doubts) about(validity uint32, info mailbox.Info) bool { return d.of(validity, info) != nil }

func (d doubts) of(validity uint32, info mailbox.Info) *doubt {
	return d[placeID(validity, info.UID, info.UIDL, info.Size)]
}

// sort puts doubtful mails last and takes out those that are resting.
func (d doubts) sort(validity uint32, infos []mailbox.Info, now time.Time) []mailbox.Info {
	if len(d) == 0 {
		return infos
	}
	infos = slices.DeleteFunc(infos, func(info mailbox.Info) bool {
		doubt := d.of(validity, info)
		return doubt != nil && doubt.times >= mostDoubts && now.Sub(doubt.last) < doubtedFor
	})
	slices.SortStableFunc(infos, func(a, b mailbox.Info) int { return d.times(validity, a) - d.times(validity, b) })
	return infos
}

func (d doubts) times(validity uint32, info mailbox.Info) int {
	if doubt := d.of(validity, info); doubt != nil {
		return doubt.times
	}
	return 0
}

// worst is why a mail that rests could not be fetched, nil when none rests.
func (d doubts) worst() error {
	for _, doubt := range d {
		if doubt.times >= mostDoubts {
			return doubt.why
		}
	}
	return nil
}
