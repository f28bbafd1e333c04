package contract_test

import (
	"strconv"
	"strings"
	"testing"

	"posthorn/pkg/contract"
)

const (
	source = "sales"
	key    = "cxdkexdnveauhrpvcm3hjvn2tpjdoyzm"
)

func TestSubjectsAreWhatStrangersWereTold(t *testing.T) {
	for got, want := range map[string]string{
		contract.RawSubject(source, key):                                     "mail.v1.raw.sales." + key,
		contract.ParsedSubject(source):                                       "mail.v1.parsed.sales",
		contract.SkippedSubject(source):                                      "mail.v1.skipped.sales",
		contract.EvaluateSubject(source):                                     "mail.v1.evaluate.sales",
		contract.ContactRequestSubject("received", "w1", source, key):        "contact-request.v1.received.w1.sales." + key,
		contract.ContactRequestFilter(source, key):                           "contact-request.v1.*.*.sales." + key,
		contract.DisposeSubject(source):                                      "mailbox.v1.dispose.55.sales",
		contract.DisposedSubject(source):                                     "mailbox.v1.disposed.55.sales",
		contract.DeadLetterSubject("parser", source, key):                    "dead-letter.v1.parser.sales." + key,
		contract.SourceSubject(contract.SourceMailboxReset, source):          "source.v1.mailbox-reset.sales",
		contract.AuditSubject("aino", "source-paused"):                       "audit.v1.aino.source-paused",
		contract.ContentSubject(contract.ContentRaw, source, key):            "content.v1.raw.sales." + key,
		contract.ContentSubject(contract.ContentHTML, source, key):           "content.v1.html.sales." + key,
		contract.ContentSubject(contract.ContentPart, source, key):           "content.v1.part.sales." + key,
		contract.ContactRequestSubject(contract.EventReplied, "w", "s", "k"): "contact-request.v1.replied.w.s.k",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// The shard is part of stored subjects and of consumers' names: these values hold for ever.
func TestTheShardOfASourceNeverChanges(t *testing.T) {
	for source, want := range map[string]int{
		"sales": 55, "support": 40, "asiakaspalvelu": 19, "laskut": 37, "a": 44, "x_1-2": 48, "manual": 35, "api": 7,
	} {
		if got := contract.Shard(source); got != want {
			t.Errorf("shard of %s is %d, was %d", source, got, want)
		}
	}
	if contract.Shards != 64 {
		t.Errorf("%d shards, were 64", contract.Shards)
	}
}

func TestShardsAreUsedEvenly(t *testing.T) {
	const perShard = 100
	var count [contract.Shards]int
	for i := range contract.Shards * perShard {
		count[contract.Shard("source-"+strconv.Itoa(i))]++
	}
	for shard, n := range count {
		if n < perShard/2 || n > perShard*2 {
			t.Errorf("shard %d has %d of %d sources, want about %d", shard, n, contract.Shards*perShard, perShard)
		}
	}
}

func TestATokenCanStandInASubject(t *testing.T) {
	for _, good := range []string{"a", "sales", "first-line", "x_1", "0", "-", "_", key, strings.Repeat("a", 64)} {
		if !contract.ValidToken(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{
		"", "Sales", "a.b", "a b", "*", ">", "a*", "sales@example.org", "työ", "a\n", "\na", "a\x00", "$SYS", "a/b",
		strings.Repeat("a", 65),
	} {
		if contract.ValidToken(bad) {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestSubjectsGiveTheirKeysBack(t *testing.T) {
	gotSource, gotMail, err := contract.RawKeys(contract.RawSubject(source, key))
	if err != nil || gotSource != source || gotMail != key {
		t.Errorf("got %q, %q, %v", gotSource, gotMail, err)
	}
	event, workflow, gotSource, gotKey, err := contract.ContactRequestKeys(
		contract.ContactRequestSubject(contract.EventReplied, "first", source, key))
	if err != nil || event != contract.EventReplied || workflow != "first" || gotSource != source || gotKey != key {
		t.Errorf("got %q, %q, %q, %q, %v", event, workflow, gotSource, gotKey, err)
	}
}

func TestAnotherSubjectHasNoSuchKeys(t *testing.T) {
	for _, subject := range []string{
		"", "mail.v1.raw", "mail.v1.raw.sales", "mail.v1.parsed.sales.x", "mail.v2.raw.sales.x", "mail.v1.raw.a.b.c",
	} {
		if _, _, err := contract.RawKeys(subject); err == nil {
			t.Errorf("%q is taken for the subject of a raw mail", subject)
		}
	}
	for _, subject := range []string{
		"", "contact-request.v1", "contact-request.v1.received.w.s", "contact-request.v2.received.w.s.k",
		"contact-request.v1.received.w.s.k.x", "task.v1.received.w.s.k",
	} {
		if _, _, _, _, err := contract.ContactRequestKeys(subject); err == nil {
			t.Errorf("%q is taken for the subject of a contact request", subject)
		}
	}
}
