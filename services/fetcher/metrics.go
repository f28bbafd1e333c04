package fetcher

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/fault"
	"posthorn/pkg/source"
)

// metrics of the fetcher. Their only label with many values is the source's id.
type metrics struct {
	up        *prometheus.GaugeVec
	errorInfo *prometheus.GaugeVec
	last      *prometheus.GaugeVec
	signIns   *prometheus.CounterVec
	messages  *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	cycles    *prometheus.HistogramVec
	certUntil *prometheus.GaugeVec
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "posthorn_source_up", Help: "1 while mail of the source is taken in, else 0.",
		}, []string{"source", "protocol"}),
		errorInfo: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "posthorn_source_error_info", Help: "1 for the class of error a source has now.",
		}, []string{"source", "class"}),
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "posthorn_source_last_success_timestamp_seconds", Help: "End of the last complete cycle.",
		}, []string{"source"}),
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "posthorn_source_login_attempts_total", Help: "Sessions the fetcher tried to open: ok, rejected, failed.",
		}, []string{"source", "result"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "posthorn_fetch_messages_total", Help: "Mails by what the fetcher did: stored, left, failed.",
		}, []string{"source", "result"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "posthorn_fetch_bytes_total", Help: "Bytes of mail stored.",
		}, []string{"source"}),
		cycles: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "posthorn_fetch_duration_seconds", Help: "Length of complete cycles.",
			Buckets: prometheus.ExponentialBuckets(0.05, 3, 10),
		}, []string{"source"}),
		certUntil: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "posthorn_tls_cert_not_after_seconds", Help: "When the certificate of the source's server ends.",
		}, []string{"source"}),
	}
	for _, c := range []prometheus.Collector{
		m.up, m.errorInfo, m.last, m.signIns, m.messages, m.bytes, m.cycles, m.certUntil,
	} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) fetched(source, result string) { m.messages.WithLabelValues(source, result).Inc() }
func (m *metrics) cycle(source string, length time.Duration) {
	m.cycles.WithLabelValues(source).Observe(length.Seconds())
}

func (m *metrics) state(id, protocol string, state source.State) {
	up := 0.0
	if state.State == source.StateOK || state.State == source.StateDegraded {
		up = 1
	}
	m.up.WithLabelValues(id, protocol).Set(up)
	m.errorInfo.DeletePartialMatch(prometheus.Labels{"source": id})
	if state.Error != nil {
		m.errorInfo.WithLabelValues(id, state.Error.Code.Class()).Set(1)
	}
	if !state.LastCycle.IsZero() {
		m.last.WithLabelValues(id).Set(float64(state.LastCycle.Unix()))
	}
}

func (m *metrics) forget(id string) {
	for _, vec := range []*prometheus.GaugeVec{m.up, m.errorInfo, m.last, m.certUntil} {
		vec.DeletePartialMatch(prometheus.Labels{"source": id})
	}
}

func (m *metrics) signIn(source string, err error) {
	result := "ok"
	switch {
	case fault.CodeOf(err).Class() == "auth":
		result = "rejected"
	case err != nil:
		result = "failed"
	}
	m.signIns.WithLabelValues(source, result).Inc()
}

func (m *metrics) certificate(source string, until time.Time) {
	if until.IsZero() {
		m.certUntil.DeleteLabelValues(source)
		return
	}
	m.certUntil.WithLabelValues(source).Set(float64(until.Unix()))
}
