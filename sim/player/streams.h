// The AXI4-Streams beside a unit: what goes in, packet by packet, and what has come out.

#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "pins.h"

namespace thermokron {

constexpr uint64_t STREAM_PATIENCE = 1024;  // clock cycles for which a beat may be offered

// The sources have data whenever there are some, and the sink takes whatever comes. A unit without
// streams has nothing of this; of its pins none is touched.
template <class Pins>
class Streams {
public:
    Streams(Pins& pins, const Sizes& sizes) : pins(pins), words(sizes.stream_bits / 32) {}

    // What has come from the unit, and after how many bytes TLAST was seen.
    std::vector<uint8_t> received;
    std::vector<uint64_t> ends;

    // Queues a packet of whole beats, to be offered from the next edge on; TLAST is on the last.
    void send(uint32_t stream, const uint8_t* bytes, uint64_t count) {
        std::vector<uint32_t> packet(count / 4);
        std::memcpy(packet.data(), bytes, count);
        sources[stream].packets.push_back(std::move(packet));
        offer(stream);
    }

    bool empty(uint32_t stream) const { return sources[stream].packets.empty(); }

    // Whether the unit has let a beat wait for too long.
    bool stuck(uint32_t stream) const { return sources[stream].waits >= STREAM_PATIENCE; }

    // From when on that counts.
    void begin_waiting() {
        for (Source& source : sources) source.waits = 0;
    }

    // Of the biases not the first packet, if the unit waits for one.
    void drop_unbegun(bool biases_awaited) {
        for (uint32_t stream = 0; stream < SOURCES; ++stream) {
            Source& source = sources[stream];
            const bool goes_on = source.at || (stream == BIASES && biases_awaited);
            if (source.packets.size() > goes_on) source.packets.resize(goes_on);
            if (!goes_on && source.offered) pins.tvalid(stream, source.offered = false);
        }
    }

    void forget_received() {
        received.clear();
        ends.clear();
    }

    void clear() {
        forget_received();
        if (!words) return;
        for (uint32_t stream = 0; stream < SOURCES; ++stream) {
            sources[stream] = {};
            pins.tvalid(stream, false);
        }
        pins.results_tready(ready = true);
    }

    // How probable it is in a cycle that there are no data for the unit, or none are taken.
    void misbehave(double probability, uint64_t seed) {
        stall = probability;
        stalls.state = seed ^ 0x73747265616d;  // "stream": draws of their own
        if (words) set_ready(true);
    }

    // What the last edge, before which the outputs were these, has taken and brought; and what the
    // next one is offered.
    void after_edge(const Outputs& was) {
        if (!words) return;
        after_edge(COUPLINGS, was.couplings_tready);
        after_edge(BIASES, was.biases_tready);
        if (was.results_tvalid && ready) {
            const auto bytes = reinterpret_cast<const uint8_t*>(beat);
            received.insert(received.end(), bytes, bytes + 4 * words);
            if (was.results_tlast) ends.push_back(received.size());
        }
        if (stall > 0.0) set_ready(!stalls.happens(stall));
    }

    void look(const Outputs& now) {
        if (now.results_tvalid) pins.results_tdata(beat);
    }

private:
    struct Source {
        std::deque<std::vector<uint32_t>> packets;
        size_t at = 0;         // words of the first one that have been taken
        bool offered = false;  // a beat is on the pins, where it stays until it is taken
        uint64_t waits = 0;    // for how many cycles of this command it has
    };

    void after_edge(uint32_t stream, bool taken) {
        Source& source = sources[stream];
        if (source.packets.empty()) return;
        if (source.offered && taken) {
            source.offered = false;
            source.waits = 0;
            if ((source.at += words) == source.packets.front().size()) {
                source.packets.pop_front();
                source.at = 0;
            }
        }
        offer(stream);
        if (source.offered) ++source.waits;
        else pins.tvalid(stream, false);
    }

    // Offers the next beat, if there is one.
    void offer(uint32_t stream) {
        Source& source = sources[stream];
        if (source.offered || source.packets.empty()) return;
        if (stall > 0.0 && stalls.happens(stall)) return;
        const auto& packet = source.packets.front();
        pins.tdata(stream, packet.data() + source.at);
        pins.tlast(stream, source.at + words == packet.size());
        pins.tvalid(stream, source.offered = true);
    }

    void set_ready(bool to) {
        if (to != ready) pins.results_tready(ready = to);
    }

    Pins& pins;
    const uint32_t words;  // of a beat, 32 bits each; 0: there are no streams
    Source sources[SOURCES];
    uint32_t beat[4] = {};  // of results, on the pins
    bool ready = false;
    double stall = 0.0;
    Draws stalls;
};

}  // namespace thermokron
