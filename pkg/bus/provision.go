package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

const day = 24 * time.Hour

// stream is one row of the floor plan of the store. Nothing is ever dropped for want of room: a full stream refuses
// what is new. Only age removes messages, where a maximum is given.
type stream struct {
	name     contract.Stream
	subjects []string
	maxAge   time.Duration // 0 keeps for ever
	once     bool          // one message per subject

}

// streams are those of the contract.
var streams = []stream{
	{name: contract.StreamMail, subjects: []string{"mail.v1.raw.*.*"}, once: true},
	{name: contract.StreamParsed, subjects: []string{
		"mail.v1.parsed.*", "mail.v1.skipped.*", "mail.v1.evaluate.*",
	}, maxAge: 30 * day},
	{name: contract.StreamContactRequests, subjects: []string{"contact-request.v1.*.*.*.*"}},
	{name: contract.StreamDispositions, subjects: []string{
		"mailbox.v1.dispose.*.*", "mailbox.v1.disposed.*.*",
	}, maxAge: 30 * day},
	{name: contract.StreamTasks, subjects: []string{"task.v1.*.*.*"}},
	{name: contract.StreamDeadLetters, subjects: []string{"dead-letter.v1.*.*.*"}},
	{name: contract.StreamSources, subjects: []string{"source.v1.*.*"}, maxAge: 400 * day},
	{name: contract.StreamAudit, subjects: []string{"audit.v1.*.*"}, maxAge: 400 * day},
}

// Buckets of keys and values. The leases are kept in memory: they need no disk, and after a restart of the broker
// everybody acquires them anew.
const (
	BucketSources     = "sources"
	BucketWorkflows   = "workflows"
	BucketSourceState = "source-state"
	BucketLedger      = "ledger"
	BucketSentIndex   = "sent-index"
	BucketThreads     = "threads"
	BucketSkipped     = "skipped"
	BucketStore       = "store"
	bucketQuarantine  = "quarantine"
	bucketLeases      = "leases"
)

var buckets = []string{
	BucketSources, BucketWorkflows, BucketSourceState, BucketLedger, BucketSentIndex, BucketThreads, BucketSkipped,
	BucketStore, bucketQuarantine, bucketLeases,
}

// Durable consumers of the stages that have one for all sources.
const (
	DurableParser         = "parser"          // on MAIL
	DurableParserEvaluate = "parser-evaluate" // on PARSED, evaluate orders
	DurableRouter         = "router"          // on PARSED, parsed mails
)

// DurableArchiver names the consumer of one source's orders on DISPOSITIONS: each source has its own, so that the
// orders of one that refuses wait in the stream and delay no other.
func DurableArchiver(source string) string { return "archiver-" + source }

type durable struct {
	name   string
	stream contract.Stream
	filter string
}

var durables = []durable{
	{DurableParser, contract.StreamMail, "mail.v1.raw.*.*"},
	{DurableParserEvaluate, contract.StreamParsed, "mail.v1.evaluate.*"},
	{DurableRouter, contract.StreamParsed, "mail.v1.parsed.*"},
}

// maxAckPending bounds the messages in hand and those put back for later. It is large, so that the second kind does not
// hold up others.
const maxAckPending = 10000

// ackWait is after how long without a sign of life a message is given to somebody else.
const ackWait = 10 * time.Second

// ProvisionConfig says how to set up the store.
type ProvisionConfig struct {
	// Replicas of every stream: 1, or 3 on a cluster of three servers. 0 leaves what is there; new streams get 1.
	Replicas int
	// MaxBytes bounds the stream of raw mails and the bucket of large ones, each. When one is full, fetching stops. 0
	// leaves what is there; new streams have no bound but the disk.
	MaxBytes int64
}

// Provision creates the streams, consumers, and buckets of Posthorn, or brings them to what they have to be, and
// returns what it changed, in words; nothing when all was there. It never removes anything. It needs a user that may
// create streams.
func (c *Conn) Provision(ctx context.Context, config ProvisionConfig) ([]string, error) {
	var changes []string
	for _, want := range c.plan() {
		began := time.Now()
		change, err := c.provisionStream(ctx, want, config)
		if err != nil {
			return changes, c.fault(err, began, "the stream "+want.Name)
		}
		if change != "" {
			changes = append(changes, change)
		}
	}
	for _, want := range durables {
		began := time.Now()
		change, err := c.provisionDurable(ctx, want.stream, want.config())
		if err != nil {
			return changes, c.fault(err, began, "the consumer "+want.name)
		}
		if change != "" {
			changes = append(changes, change)
		}
	}
	return changes, nil
}

// restoreLeases makes the bucket of leases anew: a server alone forgets streams in memory when it restarts. It gets as
// many replicas as the sources have. Without sources there is no store of ours, and nothing is made.
func (c *Conn) restoreLeases(ctx context.Context) error {
	began := time.Now()
	sources, err := c.js.Stream(ctx, "KV_"+BucketSources)
	if err != nil {
		return c.fault(err, began, "the bucket "+BucketSources)
	}
	for _, want := range c.plan() {
		if want.Name != "KV_"+bucketLeases {
			continue
		}
		want.Replicas = sources.CachedInfo().Config.Replicas
		_, err := c.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			err = nil
		}
		return c.fault(err, began, "the bucket "+bucketLeases)
	}
	return nil
}

// CheckProvisioned finds out, without changing anything, whether all is there that [Conn.Provision] creates. What is
// missing is named by a store.not_provisioned. The bucket of leases does not count: it is lost when a server restarts,
// and is made anew by whoever needs it.
func (c *Conn) CheckProvisioned(ctx context.Context) error {
	var lacking []string
	for _, want := range c.plan() {
		if want.Name == "KV_"+bucketLeases {
			continue
		}
		began := time.Now()
		if _, err := c.js.Stream(ctx, want.Name); errors.Is(err, jetstream.ErrStreamNotFound) {
			lacking = append(lacking, "the stream "+want.Name)
		} else if err != nil {
			return c.fault(err, began, "the stream "+want.Name)
		}
	}
	for _, want := range durables {
		began := time.Now()
		_, err := c.js.Consumer(ctx, string(want.stream), want.name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			lacking = append(lacking, "the consumer "+want.name)
		} else if err != nil {
			return c.fault(err, began, "the consumer "+want.name)
		}
	}
	if len(lacking) > 0 {
		return fault.New(fault.StoreMissing, nil, fault.Params{"what": strings.Join(lacking, ", ")})
	}
	return nil
}

// StoreID is the identity mark of the store, and whether it was made just now, because the store is new or was emptied.
// Callers compare it with the one they keep in the data directory.
func (c *Conn) StoreID(ctx context.Context) (id string, created bool, err error) {
	bucket, err := c.Bucket(ctx, BucketStore)
	if err != nil {
		return "", false, err
	}
	for {
		entry, err := bucket.Get(ctx, "id")
		if err == nil {
			return string(entry.Value), false, nil
		}
		if !errors.Is(err, ErrNotFound) {
			return "", false, err
		}
		id := rand.Text()
		_, err = bucket.Create(ctx, "id", []byte(id))
		if err == nil {
			return id, true, nil
		}
		if fault.CodeOf(err) != fault.StoreConflict {
			return "", false, err
		}
	}
}

// FindStoreID is the identity mark of the store, [ErrNotFound] when it has none. It creates nothing.
func (c *Conn) FindStoreID(ctx context.Context) (string, error) {
	bucket, err := c.Bucket(ctx, BucketStore)
	if fault.CodeOf(err) == fault.StoreMissing {
		return "", ErrNotFound
	}
	if err != nil {
		return "", err
	}
	entry, err := bucket.Get(ctx, "id")
	return string(entry.Value), err
}

// plan lists the streams, those of buckets included, as they have to be.
func (c *Conn) plan() []jetstream.StreamConfig {
	var plan []jetstream.StreamConfig
	for _, s := range streams {
		config := base(string(s.name), s.subjects...)
		config.MaxAge = s.maxAge
		config.Duplicates = 10 * time.Minute
		if s.once {
			config.MaxMsgsPerSubject, config.DiscardNewPerSubject = 1, true
		}
		plan = append(plan, config)
	}
	for _, name := range buckets {
		// As the client library's buckets are, plus batches, so that their writes take part in group commit.
		config := base("KV_"+name, "$KV."+name+".>")
		config.MaxMsgsPerSubject = 1
		config.AllowRollup = true
		config.DenyDelete = true
		config.Duplicates = 2 * time.Minute
		switch name {
		case bucketLeases:
			config.Storage = jetstream.MemoryStorage
			config.AllowAtomicPublish = false
			config.AllowMsgTTL = true
			config.SubjectDeleteMarkerTTL = time.Minute
		case bucketQuarantine:
			config.MaxAge = 30 * day // marks of messages long gone
			config.DenyDelete = false
		case BucketSentIndex, BucketThreads, BucketLedger:
			config.DenyDelete = false // traces of a person can be erased
		}
		plan = append(plan, config)
	}
	objects := base("OBJ_"+contract.ObjectBucket, "$O."+contract.ObjectBucket+".C.>", "$O."+contract.ObjectBucket+".M.>")
	objects.AllowRollup = true
	objects.Duplicates = 2 * time.Minute
	objects.AllowAtomicPublish = false // chunks are large, batches of them gain nothing
	return append(plan, objects)
}

func base(name string, subjects ...string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: name, Subjects: subjects, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardNew, AllowDirect: true, AllowAtomicPublish: true,
		MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1, MaxConsumers: -1, MaxMsgsPerSubject: -1,
	}
}

func (c *Conn) provisionStream(
	ctx context.Context, want jetstream.StreamConfig, config ProvisionConfig,
) (string, error) {
	bounded := want.Name == string(contract.StreamMail) || want.Name == "OBJ_"+contract.ObjectBucket
	if bounded && config.MaxBytes > 0 {
		want.MaxBytes = config.MaxBytes
	}
	want.Replicas = max(config.Replicas, 1)
	existing, err := c.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = c.js.CreateStream(ctx, want)
		return "created the stream " + want.Name, err
	}
	if err != nil {
		return "", err
	}
	have := existing.CachedInfo().Config
	update := have
	var changed []string
	set := func(what string, differs bool, apply func()) {
		if differs {
			changed = append(changed, what)
			apply()
		}
	}
	set("subjects", !slices.Equal(have.Subjects, want.Subjects), func() { update.Subjects = want.Subjects })
	set("discard", have.Discard != want.Discard, func() { update.Discard = want.Discard })
	set("max_age", have.MaxAge != want.MaxAge, func() { update.MaxAge = want.MaxAge })
	set("max_msgs", have.MaxMsgs != want.MaxMsgs, func() { update.MaxMsgs = want.MaxMsgs })
	set("max_msgs_per_subject", have.MaxMsgsPerSubject != want.MaxMsgsPerSubject, func() {
		update.MaxMsgsPerSubject = want.MaxMsgsPerSubject
	})
	set("discard_new_per_subject", have.DiscardNewPerSubject != want.DiscardNewPerSubject, func() {
		update.DiscardNewPerSubject = want.DiscardNewPerSubject
	})
	set("duplicate_window", have.Duplicates != want.Duplicates, func() { update.Duplicates = want.Duplicates })
	set("allow_direct", have.AllowDirect != want.AllowDirect, func() { update.AllowDirect = want.AllowDirect })
	set("allow_atomic", have.AllowAtomicPublish != want.AllowAtomicPublish, func() {
		update.AllowAtomicPublish = want.AllowAtomicPublish
	})
	set("allow_rollup", have.AllowRollup != want.AllowRollup, func() { update.AllowRollup = want.AllowRollup })
	set("allow_msg_ttl", !have.AllowMsgTTL && want.AllowMsgTTL, func() { update.AllowMsgTTL = true })
	set("subject_delete_marker_ttl", have.SubjectDeleteMarkerTTL != want.SubjectDeleteMarkerTTL, func() {
		update.SubjectDeleteMarkerTTL = want.SubjectDeleteMarkerTTL
	})
	set("max_bytes", bounded && config.MaxBytes > 0 && have.MaxBytes != want.MaxBytes, func() {
		update.MaxBytes = want.MaxBytes
	})
	set("replicas", config.Replicas > 0 && have.Replicas != config.Replicas, func() {
		update.Replicas = config.Replicas
	})
	if len(changed) == 0 {
		return "", nil
	}
	_, err = c.js.UpdateStream(ctx, update)
	return fmt.Sprintf("changed the stream %s: %s", want.Name, strings.Join(changed, ", ")), err
}

func (d durable) config() jetstream.ConsumerConfig {
	return durableConfig(d.name, []string{d.filter}, ackWait)
}

// durableConfig is how every consumer that settles messages is made: it delivers for ever, as a message is never given
// up on silently.
func durableConfig(name string, filters []string, wait time.Duration) jetstream.ConsumerConfig {
	config := jetstream.ConsumerConfig{
		Durable: name, AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
		AckWait: wait, MaxDeliver: -1, MaxAckPending: maxAckPending,
	}
	if len(filters) == 1 {
		config.FilterSubject = filters[0]
	} else {
		config.FilterSubjects = filters
	}
	return config
}

func (c *Conn) provisionDurable(
	ctx context.Context, stream contract.Stream, want jetstream.ConsumerConfig,
) (string, error) {
	existing, err := c.js.Consumer(ctx, string(stream), want.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = c.js.CreateConsumer(ctx, string(stream), want)
		return "created the consumer " + want.Durable, err
	}
	if err != nil {
		return "", err
	}
	have := existing.CachedInfo().Config
	if have.FilterSubject == want.FilterSubject && slices.Equal(have.FilterSubjects, want.FilterSubjects) &&
		have.AckWait == want.AckWait && have.MaxAckPending == want.MaxAckPending && have.MaxDeliver == want.MaxDeliver {
		return "", nil
	}
	have.FilterSubject, have.FilterSubjects = want.FilterSubject, want.FilterSubjects
	have.AckWait, have.MaxAckPending, have.MaxDeliver = want.AckWait, want.MaxAckPending, want.MaxDeliver
	_, err = c.js.UpdateConsumer(ctx, string(stream), have)
	return "changed the consumer " + want.Durable, err
}
