package source

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"posthorn/pkg/secret"
)

// ApplyOptions say how to apply a sources file.
type ApplyOptions struct {
	// Prune removes sources that are managed by a file and not named in this one; without it they are paused.
	Prune bool
	// By is who applies it, for the audit; [ByFile] when empty.
	By string
	// DryRun reports what would be done, and does nothing.
	DryRun bool
}

// Report says what applying a sources file did, by ids of sources in the order of the file.
type Report struct {
	Created   []string `json:"created,omitempty"`
	Changed   []string `json:"changed,omitempty"`
	Unchanged []string `json:"unchanged,omitempty"`
	// Missing are managed by a file and not named in this one; those of them that were still running are in Paused.
	Missing []string `json:"missing,omitempty"`
	Paused  []string `json:"paused,omitempty"`
	Removed []string `json:"removed,omitempty"`
	// Fields names what changed, by source.
	Fields map[string][]string `json:"fields,omitempty"`
	// Workflows that were created or changed.
	Workflows []string `json:"workflows,omitempty"`
}

// Apply makes the store hold what the file says. Everything is checked before anything is written: the error is a
// [*FileError] with all problems, or that of the store, with what was done until then in the report. Applying a file
// twice changes nothing the second time: a password that is stored already is not stored again.
//
// A source that the file does not name any more is paused, and resumed when it comes back; one that a person paused
// stays paused. Workflows are created and changed, never removed.
func Apply(ctx context.Context, store *Store, file File, options ApplyOptions) (Report, error) {
	options.By = cmp.Or(options.By, ByFile)
	store.mu.Lock()
	defer store.mu.Unlock()
	a := &application{store: store, file: file, options: options, report: Report{Fields: map[string][]string{}}}
	if err := a.plan(ctx); err != nil {
		return Report{}, err
	}
	return a.report, a.carryOut(ctx)
}

// Explain adds to what [LoadFile] found wrong with a file what its sources, as far as they could be read, break of the
// rules: a person is told everything at once. It changes nothing, and returns a [*FileError].
func Explain(ctx context.Context, store *Store, file File, err error) error {
	found, ok := errors.AsType[*FileError](err)
	if !ok || len(file.Sources) == 0 {
		return err
	}
	_, applyErr := Apply(ctx, store, file, ApplyOptions{DryRun: true})
	more, ok := errors.AsType[*FileError](applyErr)
	if !ok {
		return err
	}
	all := slices.Clone(found.Problems)
	for _, problem := range more.Problems {
		known := slices.ContainsFunc(found.Problems, func(p Problem) bool {
			return p.Source == problem.Source && p.Field == problem.Field
		})
		if !known { // what could not be read is not missing besides
			all = append(all, problem)
		}
	}
	slices.SortStableFunc(all, func(a, b Problem) int { return a.Line - b.Line })
	return &FileError{Path: found.Path, Problems: all}
}

// application is one run of [Apply].
type application struct {
	store   *Store
	file    File
	options ApplyOptions
	report  Report

	workflows []Workflow // to be written
	steps     []step     // sources of the file
	missing   []Source   // managed by a file, and not named in this one
	problems  []Problem
}

// step is one source of the file: what is there (nil: nothing), and what shall be.
type step struct {
	before   *Source
	next     Source
	password secret.Secret // empty when it is stored already
}

// plan compares the file with the store and checks the whole outcome.
func (a *application) plan(ctx context.Context) error {
	stored, err := a.store.List(ctx)
	if err != nil {
		return err
	}
	workflows, err := a.store.Workflows(ctx)
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for _, read := range a.file.Sources {
		named[read.Source.ID] = true
	}
	var others []Source // that stay as they are, and are not the file's
	for _, s := range stored {
		switch {
		case named[s.ID]:
		case s.ManagedBy != ByFile:
			others = append(others, s)
		default:
			a.missing = append(a.missing, s)
			if !a.options.Prune {
				others = append(others, s)
			}
		}
	}
	workflows = a.planWorkflows(workflows, others)

	outcome := others
	for i := range a.file.Sources {
		read := &a.file.Sources[i]
		read.Source = read.Source.normal()
		outcome = append(outcome, read.Source)
	}
	for _, read := range a.file.Sources {
		var before *Source
		if i := slices.IndexFunc(stored, func(s Source) bool { return s.ID == read.Source.ID }); i >= 0 {
			before = &stored[i]
		}
		a.planSource(read, before, Rules{
			AllowedPorts: a.store.options.AllowedPorts, Workflows: workflows, Others: outcome, Password: read.Password,
		})
	}
	if len(a.problems) > 0 {
		slices.SortStableFunc(a.problems, func(a, b Problem) int { return a.Line - b.Line })
		return &FileError{Path: a.file.Path, Problems: a.problems}
	}
	return nil
}

// planWorkflows returns the workflows there will be.
func (a *application) planWorkflows(stored []Workflow, others []Source) []Workflow {
	outcome := slices.Clone(stored)
	for _, read := range a.file.Workflows {
		w := read.Workflow
		i := slices.IndexFunc(outcome, func(other Workflow) bool { return other.ID == w.ID })
		if i < 0 {
			outcome = append(outcome, w)
			a.workflows = append(a.workflows, w)
			continue
		}
		w.Revision = outcome[i].Revision
		if w != outcome[i] {
			outcome[i] = w
			a.workflows = append(a.workflows, w)
		}
	}
	for _, read := range a.file.Workflows {
		for _, violation := range ValidateWorkflow(read.Workflow, outcome, others) {
			a.problems = append(a.problems, Problem{
				Line: read.Line, Source: "workflow " + read.ID, Violation: violation,
			})
		}
	}
	return outcome
}

func (a *application) planSource(read FileSource, before *Source, rules Rules) {
	problem := func(violation Violation) {
		line, ok := read.Lines[violation.Field]
		if !ok {
			line = read.Line
		}
		a.problems = append(a.problems, Problem{Line: line, Source: read.Source.ID, Violation: violation})
	}
	if before != nil && before.ManagedBy != ByFile {
		problem(Violation{Field: "id", Rule: RuleReadOnly, Message: "There is a source with this id already, " +
			"and it is not managed by a file. Choose another id, or delete that source first."})
		return
	}
	if before == nil { // the id is this source's own: the outcome holds it
		rules.Others = slices.DeleteFunc(slices.Clone(rules.Others), func(s Source) bool { return s.ID == read.Source.ID })
	}
	rules.Before = before
	for _, violation := range Validate(read.Source, rules) {
		problem(violation)
	}
	next := step{before: before, next: read.Source, password: read.Password}
	if before != nil {
		if before.Paused && before.PausedBy != ByFile { // a person paused it
			next.next.Paused = true
		}
		stored, err := a.store.keys.Open(before.Auth.Sealed, before.ID, fieldPassword)
		if err == nil && stored == read.Password {
			next.password = ""
		}
	}
	a.steps = append(a.steps, next)
}

// carryOut writes what was planned: workflows before the sources that name them, removals before the sources that take
// their place.
func (a *application) carryOut(ctx context.Context) error {
	for _, w := range a.workflows {
		if !a.options.DryRun {
			if _, err := a.store.putWorkflow(ctx, w, a.options.By); err != nil {
				return err
			}
		}
		a.report.Workflows = append(a.report.Workflows, w.ID)
	}
	if a.options.Prune {
		for _, s := range a.missing {
			if !a.options.DryRun {
				if err := a.store.remove(ctx, s, a.options.By); err != nil {
					return err
				}
			}
			a.report.Removed = append(a.report.Removed, s.ID)
		}
	}
	for _, step := range a.steps {
		if err := a.do(ctx, step); err != nil {
			return err
		}
	}
	if a.options.Prune {
		return nil
	}
	for _, s := range a.missing {
		a.report.Missing = append(a.report.Missing, s.ID)
		if s.Paused {
			continue
		}
		if !a.options.DryRun {
			paused := s
			paused.Paused = true
			act := act{by: a.options.By, action: "source-paused", pausedBy: ByFile}
			if _, err := a.store.write(ctx, &s, paused, "", act); err != nil {
				return err
			}
		}
		a.report.Paused = append(a.report.Paused, s.ID)
	}
	return nil
}

func (a *application) do(ctx context.Context, step step) error {
	act := act{by: a.options.By, action: "source-changed", pausedBy: ByFile}
	if step.before == nil {
		act.action = "source-created"
	}
	next, fields, err := a.store.settle(step.before, step.next, step.password, act)
	if err != nil {
		return err
	}
	id := next.ID
	if step.before != nil && len(fields) == 0 {
		a.report.Unchanged = append(a.report.Unchanged, id)
		return nil
	}
	if !a.options.DryRun {
		if _, err := a.store.commit(ctx, step.before, next, fields, act); err != nil {
			return err
		}
	}
	if step.before == nil {
		a.report.Created = append(a.report.Created, id)
		return nil
	}
	a.report.Changed = append(a.report.Changed, id)
	a.report.Fields[id] = fields
	return nil
}
