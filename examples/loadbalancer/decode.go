// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// decode reads the list of services. Each error names the service and the field.
func decode(text []byte) ([]Service, error) {
	var raw []json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, explainJSON(text, err)
	}
	if raw == nil {
		return nil, errors.New("null: want a list of services")
	}
	all := make([]Service, len(raw))
	var errs []error
	for i, r := range raw {
		if err := all[i].decode(r); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", all[i].title(i), err))
		}
	}
	return all, errors.Join(errs...)
}

// title is how errors call the service at place i of the list.
func (s Service) title(i int) string {
	if s.Name == "" {
		return fmt.Sprintf("service %d of the list", i+1)
	}
	return fmt.Sprintf("service %q", s.Name)
}

func (s *Service) decode(raw json.RawMessage) error {
	// So that an error in front of the name can tell it; whatever is wrong is found below.
	var named struct{ Name string }
	_ = json.Unmarshal(raw, &named)
	s.Name = named.Name
	return object(raw, fields{
		"name":            into(&s.Name),
		"frontends":       list(&s.Frontends, (*Frontend).decode),
		"backends":        list(&s.Backends, (*Backend).decode),
		"algorithm":       into(&s.Algorithm),
		"affinitySeconds": into(&s.AffinitySeconds),
		"sourceRanges":    list(&s.SourceRanges, func(at *string, raw json.RawMessage) error { return into(at)(raw) }),
		"denySources":     into(&s.DenySources),
		"onRemove":        into(&s.OnRemove),
	}, "name", "frontends", "backends")
}

func (f *Frontend) decode(raw json.RawMessage) error {
	return object(raw, fields{"address": into(&f.Address), "protocol": into(&f.Protocol), "type": into(&f.Type)}, "address")
}

func (b *Backend) decode(raw json.RawMessage) error {
	return object(raw, fields{"address": into(&b.Address), "state": into(&b.State), "weight": func(raw json.RawMessage) error {
		if err := into(&b.Weight)(raw); err != nil {
			return err
		}
		if b.Weight < 1 {
			return fmt.Errorf("%d: want 1 to 65535; with \"state\": \"maintenance\" it gets nothing", b.Weight)
		}
		return nil
	}}, "address")
}

// fields are the readers of an object's values, by their names.
type fields map[string]func(json.RawMessage) error

// object reads an object. Other than encoding/json it takes a name only as it is
// spelled, and once.
func object(raw json.RawMessage, known fields, required ...string) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	open, err := dec.Token()
	if err != nil {
		return err
	}
	if open != json.Delim('{') {
		return fmt.Errorf("%s: want an object", shorten(raw))
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); !ok || err != nil {
			return errors.Join(fmt.Errorf("%v: want the name of a field and its value", token), err)
		}
		read := known[name]
		switch {
		case read == nil:
			return fmt.Errorf("there is no field %q: want %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		case seen[name]:
			return fmt.Errorf("%s: it comes twice", name)
		}
		seen[name] = true
		if err := read(value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, name := range required {
		if !seen[name] {
			return fmt.Errorf("%s: it is missing", name)
		}
	}
	return nil
}

// into reads a text, a number or a truth.
func into[T string | int | bool](at *T) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		var value *T
		if err := json.Unmarshal(raw, &value); err != nil || value == nil {
			want := map[string]string{"string": "a text", "int": "a whole number", "bool": "true or false"}[fmt.Sprintf("%T", *at)]
			return fmt.Errorf("%s: want %s", shorten(raw), want)
		}
		*at = *value
		return nil
	}
}

// list reads an array.
func list[T any](at *[]T, read func(*T, json.RawMessage) error) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		var all []json.RawMessage
		if err := json.Unmarshal(raw, &all); err != nil || all == nil {
			return fmt.Errorf("%s: want a list", shorten(raw))
		}
		*at = make([]T, len(all))
		for i, r := range all {
			if err := read(&(*at)[i], r); err != nil {
				return fmt.Errorf("number %d: %w", i+1, err)
			}
		}
		return nil
	}
}

// shorten is a value as it stands in the file, as far as it fits an error.
func shorten(raw json.RawMessage) string {
	const longest = 40
	var text bytes.Buffer
	if json.Compact(&text, raw) != nil || text.Len() <= longest {
		return text.String()
	}
	return strings.ToValidUTF8(string(text.Bytes()[:longest]), "") + "…"
}

// explainJSON says where the text is no JSON list.
func explainJSON(text []byte, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		line := 1 + bytes.Count(text[:min(max(int(syntax.Offset), 0), len(text))], []byte("\n"))
		return fmt.Errorf("line %d: it is no JSON: %w", line, err)
	}
	return fmt.Errorf("%s: want a list of services", shorten(text))
}
