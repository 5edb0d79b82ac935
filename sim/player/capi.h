// What Python calls (thermokron.sim.player) of the class `Unit`, which has a `player`.

#pragma once

#include "player.h"

extern "C" {

int player_event(Unit* unit) { return unit->player.event(); }
uint64_t player_cycle(Unit* unit) { return unit->player.cycle; }
uint64_t player_stream(Unit* unit) { return unit->player.stream; }
int64_t player_refused(Unit* unit) { return unit->player.refused; }
const char* player_error(Unit* unit) { return unit->player.error.c_str(); }
bool player_interrupt(Unit* unit) { return unit->pins.outputs().irq; }
uint32_t player_temperature(Unit* unit) { return unit->pins.temperature(); }
const int32_t* player_couplings(Unit* unit) { return unit->player.dacs.couplings.data(); }
const int32_t* player_biases(Unit* unit) { return unit->player.dacs.biases.data(); }

void player_write(Unit* unit, uint32_t address, const uint32_t* words, uint64_t count) {
    unit->player.write(address, words, count);
}

void player_read(Unit* unit, const uint32_t* ranges, uint64_t count, uint32_t* into) {
    unit->player.read(ranges, count, into);
}

void player_wait(Unit* unit, uint64_t cycles) { unit->player.wait(cycles); }
void player_reset(Unit* unit) { unit->player.reset(); }
void player_deliver(Unit* unit, uint32_t stream) { unit->player.deliver(stream); }
void player_flush(Unit* unit) { unit->player.flush(); }

void player_send(Unit* unit, uint32_t stream, const uint8_t* bytes, uint64_t count) {
    unit->player.streams.send(stream, bytes, count);
}

uint64_t player_received(Unit* unit) { return unit->player.streams.received.size(); }
uint64_t player_packets(Unit* unit) { return unit->player.streams.ends.size(); }

// All that has come from the stream of results, and the numbers of bytes after which packets ended.
void player_take(Unit* unit, uint8_t* bytes, uint64_t* ends) {
    std::copy(unit->player.streams.received.begin(), unit->player.streams.received.end(), bytes);
    std::copy(unit->player.streams.ends.begin(), unit->player.streams.ends.end(), ends);
    unit->player.streams.forget_received();
}

void player_expect(Unit* unit, uint64_t settle_cycles, uint64_t interval_cycles, uint64_t stream) {
    unit->player.expect(settle_cycles, interval_cycles, stream);
}

void player_presume(Unit* unit, uint64_t vectors, uint64_t samples, uint64_t temperature,
                    const int32_t* couplings, const int32_t* biases, const int32_t* codes,
                    const double* voltages) {
    unit->player.presume({vectors, samples, temperature, couplings, biases, codes, voltages});
}

void player_supply(Unit* unit, uint64_t samples, const int32_t* codes, const double* voltages) {
    unit->player.supply(samples, codes, voltages);
}

void player_misbehave(Unit* unit, int64_t silent_from, int64_t stuck_from, uint64_t latency_cycles,
                      uint64_t early_cycles, uint64_t seed, double glitch, double stall,
                      double stream_stall) {
    unit->player.misbehave({silent_from, stuck_from, latency_cycles, early_cycles, seed, glitch,
                            stall, stream_stall});
}

}  // extern "C"
