// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
)

// Fragment cuts a frame into fragments whose IP packets are at most mtu bytes
// long, in order. The fragments of IPv6 carry the identification id; those of
// IPv4 keep the identification of the packet and ignore its "don't fragment".
// A frame that fits is returned alone.
func Fragment(frame []byte, mtu int, id uint32) ([][]byte, error) {
	d, err := Decode(frame)
	if err != nil {
		return nil, err
	}
	switch {
	case d.IPv4 == nil && d.IPv6 == nil:
		return nil, errors.New("fragment: the frame has no IP packet")
	case d.IsFragment():
		return nil, errors.New("fragment: the frame is a fragment")
	case len(frame)-len(d.Trailer)-d.linkLen() <= mtu:
		return [][]byte{frame}, nil
	case d.IPv4 != nil:
		return d.fragment4(frame, mtu)
	}
	return d.fragment6(frame, mtu, id)
}

func (d Decoded) linkLen() int {
	n := 14
	for _, l := range d.Layers {
		if _, ok := l.(VLAN); ok {
			n += 4
		}
	}
	return n
}

func (d Decoded) fragment4(frame []byte, mtu int) ([][]byte, error) {
	link, start := d.Layers[:(d.linkLen()-14)/4+1], d.linkLen()
	payload := frame[start+20+len(d.IPv4.Options) : len(frame)-len(d.Trailer)]
	room := (mtu - 20 - len(d.IPv4.Options)) &^ 7
	if room < 8 {
		return nil, fmt.Errorf("fragment: an MTU of %d bytes is too small", mtu)
	}
	h := *d.IPv4
	h.DontFragment, h.Checksum = false, nil
	var frames [][]byte
	for at := 0; at < len(payload); at += room {
		end := min(at+room, len(payload))
		h.FragOffset, h.MoreFragments = uint16(at), end < len(payload)
		if at > 0 {
			h.Options = copied(d.IPv4.Options)
		}
		f, err := Encode(append(append([]Layer(nil), link...), h, Payload(payload[at:end]))...)
		if err != nil {
			return nil, err
		}
		frames = append(frames, f)
	}
	return frames, nil
}

// copied keeps the options that RFC 791 wants in every fragment.
func copied(options []byte) []byte {
	var keep []byte
	for len(options) > 0 && options[0] != 0 {
		n := 1
		if options[0] != 1 {
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				break
			}
			n = int(options[1])
		}
		if options[0]&0x80 != 0 {
			keep = append(keep, options[:n]...)
		}
		options = options[n:]
	}
	return keep
}

func (d Decoded) fragment6(frame []byte, mtu int, id uint32) ([][]byte, error) {
	// RFC 8200 section 4.5: hop-by-hop and routing headers, and what stands
	// before them, are in every fragment.
	start := (d.linkLen()-14)/4 + 1
	keep := start + 1
	for i := start + 1; i < len(d.Layers); i++ {
		x, ok := d.Layers[i].(Extension)
		if !ok {
			break
		}
		if x.Type == ProtoHopByHop || x.Type == ProtoRouting {
			keep = i + 1
		}
	}
	layers := append([]Layer(nil), d.Layers[:keep]...)
	size, protocol := 40, d.IPv6.NextHeader
	for _, l := range layers[start+1:] {
		x := l.(Extension)
		size += 2 + len(x.Data)
		protocol = x.NextHeader
	}
	switch l := layers[keep-1].(type) {
	case IPv6:
		l.NextHeader = ProtoFragment
		layers[keep-1] = l
	case Extension:
		l.NextHeader = ProtoFragment
		layers[keep-1] = l
	}
	payload := frame[d.linkLen()+size : len(frame)-len(d.Trailer)]
	room := (mtu - size - 8) &^ 7
	if room < 8 {
		return nil, fmt.Errorf("fragment: an MTU of %d bytes is too small", mtu)
	}
	var frames [][]byte
	for at := 0; at < len(payload); at += room {
		end := min(at+room, len(payload))
		f, err := Encode(append(append([]Layer(nil), layers...),
			Fragment6{NextHeader: protocol, Offset: uint16(at), MoreFragments: end < len(payload), ID: id},
			Payload(payload[at:end]))...)
		if err != nil {
			return nil, err
		}
		frames = append(frames, f)
	}
	return frames, nil
}
