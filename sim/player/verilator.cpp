// Main program of a simulated unit in Verilator: runs cocotb, and drives the clock itself.
//
// A clock that is driven through VPI costs a callback, a queued write and a second evaluation
// of the design at every edge; here an edge is an assignment and one evaluation. The region
// order within a time step is that of IEEE 1800-2012, 4.4, as cocotb expects it. In particular
// value-change callbacks on the clock run before the design sees the edge, so that what they
// read is what registers sample.
//
// Arguments: --half-period STEPS [--trace --trace-file FILE]

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "Vtop.h"
#include "verilated.h"
#include "verilated_vpi.h"

#if VM_TRACE_FST
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using Trace = VerilatedVcdC;
#endif

extern "C" void vlog_startup_routines_bootstrap();

namespace {


// Callbacks may change what others watch, so until none is called.
void settle() {
    while (VerilatedVpi::callValueCbs()) {
    }
}

// Whether anything waits for something to happen: cocotb does until its tests have ended.
bool awaited() {
    return VerilatedVpi::cbNextDeadline() != ~QData{0} || VerilatedVpi::hasCbs(cbValueChange) ||
           VerilatedVpi::hasCbs(cbNextSimTime);
}

// Everything that happens without time passing.
void run_time_step(Vtop& top) {
    do {
        do {
            top.eval_step();
            VerilatedVpi::clearEvalNeeded();
            VerilatedVpi::doInertialPuts();
            settle();
        } while (VerilatedVpi::evalNeeded());
        VerilatedVpi::callCbs(cbReadWriteSynch);
        VerilatedVpi::doInertialPuts();
        settle();
    } while (VerilatedVpi::evalNeeded());
    top.eval_end_step();
    VerilatedVpi::callCbs(cbReadOnlySynch);
}

}  // namespace

int main(int argc, char** argv) {
    uint64_t half_period = 0;
    std::string trace_file;
    for (int i = 1; i + 1 < argc; ++i) {
        if (!std::strcmp(argv[i], "--half-period")) half_period = std::strtoull(argv[i + 1], nullptr, 10);
        if (!std::strcmp(argv[i], "--trace-file")) trace_file = argv[i + 1];
    }
    if (!half_period) {
        std::fprintf(stderr, "usage: %s --half-period STEPS [--trace --trace-file FILE]\n", argv[0]);
        return 2;
    }

    VerilatedContext& context = *Verilated::threadContextp();
    context.commandArgs(argc, argv);
    context.fatalOnError(true);
    auto top = std::make_unique<Vtop>("");
    Verilated::fatalOnVpiError(false);  // cocotb asks for objects that may not exist
#if VM_TRACE
    std::unique_ptr<Trace> trace;
    context.traceEverOn(true);
    if (!trace_file.empty()) {
        trace = std::make_unique<Trace>();
        top->trace(trace.get(), 99);
        trace->open(trace_file.c_str());
    }
#endif

    vlog_startup_routines_bootstrap();
    VerilatedVpi::callCbs(cbStartOfSimulation);
    settle();

    uint64_t next_edge = half_period;
    while (!context.gotFinish()) {
        run_time_step(*top);
#if VM_TRACE
        if (trace) trace->dump(context.time());
#endif
        if (!awaited()) break;
        context.time(std::min<uint64_t>(next_edge, VerilatedVpi::cbNextDeadline()));
        VerilatedVpi::callCbs(cbNextSimTime);
        VerilatedVpi::callTimedCbs();
        settle();
        if (context.time() == next_edge) {
            top->clk = !top->clk;
            next_edge += half_period;
            settle();
        }
    }

    top->final();
    VerilatedVpi::callCbs(cbEndOfSimulation);
#if VM_TRACE
    if (trace) trace->close();
#endif
    return context.errorCount() > 0;
}
