// wrapper.cpp - sparsec.hpp on the model of plan.c: wrapper ARTIFACT

#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <fstream>
#include <unistd.h>
#include <utility>

#include "sparsec.hpp"

static void check(bool condition, const char *what) {
    if (condition) return;
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

template <class Function> static void fails(sparsec_status kind, const char *words, Function function) {
    try {
        function();
    } catch (const sparsec::Error &error) {
        check(error.kind() == kind && std::string(error.what()).find(words) != std::string::npos, error.what());
        return;
    }
    check(false, words);
}

alignas(64) static float x[17];
alignas(64) static int32_t order[1];

static sparsec::Context ready(const sparsec::Model &model, int threads) {
    sparsec::Context context(model, threads);
    context.bind_input(0, x, 17);
    context.set_input(1, order, 1);
    return context;
}

int main(int, char **arguments) {
    const std::string path = arguments[1];
    for (int i = 0; i < 17; i++) x[i] = static_cast<float>(i + 1);

    sparsec::Model opened(path);
    sparsec::Model model(std::move(opened));
    check(!opened.get() && model.get(), "a model moves");
    check(model.inputs().size() == 2 && model.outputs().size() == 2, "ports");
    check(std::string(model.states().at(0)->name) == "past" && model.snapshot_size() == 68, "states");
    check(std::string(model.level()) == "v2" && model.step_count() == 4, "level and steps");
    check(std::string(model.step_label(3)) == "copy", "labels");

    sparsec::Context context = ready(model, 2);
    context.run();
    check(context.threads() == 2 && context.output<float>(0)[16] == 8.5f, "numbers");
    const std::vector<unsigned char> kept = context.snapshot();
    check(context.profile().size() == 4 && context.state<float>(0)[0] == 2, "profile");
    context.restore(kept);
    check(context.state<float>(0)[0] == 1, "restored");
    context.reset();
    check(context.state<float>(0)[0] == 0, "reset");
    alignas(64) float y[17];
    context.bind_output(0, y, 17);
    context.run();
    check(context.output<float>(0) == y && y[1] == 1, "in place");

    const size_t size = static_cast<size_t>(model.context_size(1));
    void *memory = nullptr;
    check(!posix_memalign(&memory, 64, size), "memory");
    {
        sparsec::Context placed(model, 1, memory, size);
        check(static_cast<void *>(placed.get()) == memory, "placed");
        fails(SPARSEC_E_INPUT, "input 'x' was never given", [&] { placed.run(); });
    }
    std::free(memory);

    const int fd = open(path.c_str(), O_RDONLY);
    check(sparsec::Model::from_descriptor(fd).step_count() == 4, "from a descriptor");
    close(fd);
    fails(SPARSEC_E_ARTIFACT, "cannot open '/nowhere'", [] { sparsec::Model nowhere("/nowhere"); });
    fails(SPARSEC_E_INPUT, "aligned", [] { sparsec::Model::from_memory(x + 1, 3); });
    fails(SPARSEC_E_INPUT, "is NULL", [&] { sparsec::Model::from_signed(path, nullptr); });
    fails(SPARSEC_E_INPUT, "runs on CPUs", [&] { sparsec::Context::on_device(model, 0); });
    fails(SPARSEC_E_INPUT, "takes 68 bytes, found 4", [&] { context.bind_input(0, x, 1); });
    std::puts("ok");
    return 0;
}
