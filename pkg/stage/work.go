// Package stage is what the rooms of the house share: a message handler over watermill with its metrics, the ownership
// of sources by lease, the start and stop of several stages in order, and the health of a process.
package stage

import (
	"context"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// drainTime is how long messages in hand may take to finish when a stage stops.
const drainTime = 30 * time.Second

// Work is a stage that handles messages of streams: watermill's router over our subscribers.
type Work struct {
	stage     string
	conn      *bus.Conn
	publisher *bus.Publisher
	log       *slog.Logger
	router    *message.Router
	handled   *prometheus.CounterVec
	took      *prometheus.HistogramVec
	inHand    *prometheus.GaugeVec
	setAside  *prometheus.CounterVec
}

// Input is a durable consumer that a stage reads from.
type Input struct {
	Stream  contract.Stream
	Durable string
	// Workers is how many messages are in hand at once.
	Workers int
}

// NewWork prepares a stage; [Work.Handle] gives it its inputs.
func NewWork(
	stage string, conn *bus.Conn, publisher *bus.Publisher, metrics prometheus.Registerer, log *slog.Logger,
) (*Work, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: drainTime}, watermill.NewSlogLogger(quiet(log)))
	if err != nil {
		return nil, err
	}
	label := prometheus.Labels{"stage": stage}
	w := &Work{
		stage: stage, conn: conn, publisher: publisher, log: log, router: router,
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "posthorn_stage_messages_total", Help: "Messages handled, by result.", ConstLabels: label,
		}, []string{"result"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "posthorn_stage_duration_seconds", Help: "Time to handle one message.", ConstLabels: label,
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
		}, []string{"result"}),
		inHand: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "posthorn_stage_inflight", Help: "Messages in hand.", ConstLabels: label,
		}, []string{"input"}),
		setAside: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "posthorn_dlq_messages_total", Help: "Mails set aside for good, by error code.", ConstLabels: label,
		}, []string{"reason"}),
	}
	for _, c := range []prometheus.Collector{w.handled, w.took, w.inHand, w.setAside} {
		if err := metrics.Register(c); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// Handle adds an input. The error of the handler settles a message: nil acknowledges it, a temporary one brings it back
// later, a permanent one sets it aside as a dead letter (see [bus.NewSubscriber]).
func (w *Work) Handle(in Input, handle func(*message.Message) error) {
	subscriber := bus.NewSubscriber(w.conn, bus.SubscriberConfig{
		Stage: w.stage, Stream: in.Stream, Durable: in.Durable, Workers: in.Workers, Publisher: w.publisher,
		Logger: w.log,
	})
	// Settle is outermost, so that measure sees the handler's own error.
	w.router.AddConsumerHandler(in.Durable, string(in.Stream), subscriber, handle).AddMiddleware(bus.Settle, w.measure)
}

// Run handles messages until ctx ends and those in hand are done. ready is called once, when messages are being taken.
func (w *Work) Run(ctx context.Context, ready func()) error {
	go func() {
		select {
		case <-w.router.Running():
			ready()
		case <-ctx.Done():
		}
	}()
	return w.router.Run(ctx)
}

// measure counts and times what a handler does.
func (w *Work) measure(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		input := message.HandlerNameFromCtx(msg.Context())
		w.inHand.WithLabelValues(input).Inc()
		defer w.inHand.WithLabelValues(input).Dec()
		start := time.Now()
		produced, err := next(msg)
		result := "done"
		switch {
		case fault.Permanent(err):
			result = "set-aside"
			w.setAside.WithLabelValues(string(fault.CodeOf(err))).Inc()
		case err != nil:
			result = "again"
		}
		w.handled.WithLabelValues(result).Inc()
		w.took.WithLabelValues(result).Observe(time.Since(start).Seconds())
		return produced, err
	}
}

// quiet lowers watermill's own chatter: what matters about a message is logged by its stage.
func quiet(log *slog.Logger) *slog.Logger { return slog.New(&atLeast{log.Handler(), slog.LevelWarn}) }

type atLeast struct {
	slog.Handler

	level slog.Level
}

func (h *atLeast) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.level && h.Handler.Enabled(ctx, level)
}

func (h *atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &atLeast{h.Handler.WithAttrs(attrs), h.level}
}

func (h *atLeast) WithGroup(name string) slog.Handler {
	return &atLeast{h.Handler.WithGroup(name), h.level}
}
