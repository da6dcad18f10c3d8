// sparsec.hpp - sparsec.h for C++11 and newer: owners that free what they hold, failures as exceptions
//
//     sparsec::Model model("model.sparsec");
//     sparsec::Context context(model);
//     context.bind_input(0, pixels.data(), pixels.size());
//     context.run();
//     const float *scores = context.output<float>(0);
//
// What functions do is said in sparsec.h.  A context must not outlive its model; both can be moved.

#ifndef SPARSEC_HPP
#define SPARSEC_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "sparsec.h"

namespace sparsec {

class Error : public std::runtime_error {
public:
    explicit Error(const sparsec_error &error) : std::runtime_error(error.message), kind_(error.kind) {}
    sparsec_status kind() const noexcept { return kind_; }

private:
    sparsec_status kind_;
};

namespace detail {

inline void check(sparsec_status status, const sparsec_error &error) {
    if (status != SPARSEC_OK) throw Error(error);
}

} // namespace detail

class Model {
public:
    explicit Model(const std::string &path, const sparsec_allocator *allocator = nullptr) {
        open([&](sparsec_model **m, sparsec_error *e) { return sparsec_open(path.c_str(), allocator, m, e); });
    }

    // An artifact that `key`, an Ed25519 public key of 32 bytes, must have signed.
    static Model from_signed(const std::string &path, const uint8_t *key, const sparsec_allocator *allocator = nullptr) {
        return made([&](sparsec_model **m, sparsec_error *e) {
            return sparsec_open_signed(path.c_str(), key, allocator, m, e);
        });
    }

    static Model from_descriptor(int fd, const sparsec_allocator *allocator = nullptr) {
        return made([&](sparsec_model **m, sparsec_error *e) { return sparsec_open_fd(fd, allocator, m, e); });
    }

    // The memory, aligned to 64 bytes, must stay as long as the model does.
    static Model from_memory(const void *data, size_t bytes, const sparsec_allocator *allocator = nullptr) {
        return made([&](sparsec_model **m, sparsec_error *e) {
            return sparsec_open_memory(data, bytes, allocator, m, e);
        });
    }

    std::vector<const sparsec_tensor *> inputs() const { return all(sparsec_input_count, sparsec_input); }
    std::vector<const sparsec_tensor *> outputs() const { return all(sparsec_output_count, sparsec_output); }
    std::vector<const sparsec_tensor *> states() const { return all(sparsec_state_count, sparsec_state); }
    const char *level() const noexcept { return sparsec_level(get()); }
    uint32_t step_count() const noexcept { return sparsec_step_count(get()); }
    const char *step_label(uint32_t step) const noexcept { return sparsec_step_label(get(), step); }
    uint64_t snapshot_size() const noexcept { return sparsec_snapshot_size(get()); }
    uint64_t context_size(int threads = 0) const noexcept { return sparsec_context_size(get(), threads); }
    sparsec_model *get() const noexcept { return handle_.get(); }

private:
    Model() = default;

    template <class Open> static Model made(Open function) {
        Model model;
        model.open(function);
        return model;
    }

    template <class Open> void open(Open function) {
        sparsec_model *model = nullptr;
        sparsec_error error;
        detail::check(function(&model, &error), error);
        handle_.reset(model);
    }

    template <class Count, class Get> std::vector<const sparsec_tensor *> all(Count count, Get tensor) const {
        std::vector<const sparsec_tensor *> found;
        for (uint32_t i = 0; i < count(get()); i++) found.push_back(tensor(get(), i));
        return found;
    }

    struct Close {
        void operator()(sparsec_model *model) const noexcept { sparsec_close(model); }
    };
    std::unique_ptr<sparsec_model, Close> handle_;
};

class Context {
public:
    // `threads` as in sparsec_context_create: 0 for the default.
    explicit Context(const Model &model, int threads = 0) : model_(model.get()) {
        create([&](sparsec_context **c, sparsec_error *e) {
            return sparsec_context_create(model_, threads, c, e);
        });
    }

    // In the caller's memory, aligned to 64 bytes.
    Context(const Model &model, int threads, void *memory, size_t bytes) : model_(model.get()) {
        create([&](sparsec_context **c, sparsec_error *e) {
            return sparsec_context_create_in(model_, threads, memory, bytes, c, e);
        });
    }

    // On a GPU, for a model that is made for GPUs.
    static Context on_device(const Model &model, int device) {
        Context context(model.get());
        context.create([&](sparsec_context **c, sparsec_error *e) {
            return sparsec_context_create_on(context.model_, device, c, e);
        });
        return context;
    }

    // `count` is the number of elements of T.
    template <class T> void bind_input(uint32_t index, const T *data, size_t count) {
        call(sparsec_bind_input, index, static_cast<const void *>(data), count * sizeof(T));
    }
    template <class T> void set_input(uint32_t index, const T *data, size_t count) {
        call(sparsec_set_input, index, static_cast<const void *>(data), count * sizeof(T));
    }
    template <class T> void bind_output(uint32_t index, T *data, size_t count) {
        call(sparsec_bind_output, index, static_cast<void *>(data), count * sizeof(T));
    }
    template <class T> const T *output(uint32_t index) const noexcept {
        return static_cast<const T *>(sparsec_output_data(get(), index));
    }

    void run() { call(sparsec_run); }

    // One inference; the seconds of each step.
    std::vector<double> profile() {
        std::vector<double> seconds(sparsec_step_count(model_));
        call(sparsec_profile, seconds.data());
        return seconds;
    }

    void reset() { call(sparsec_reset); }
    std::vector<unsigned char> snapshot() {
        std::vector<unsigned char> data(static_cast<size_t>(sparsec_snapshot_size(model_)));
        call(sparsec_snapshot, static_cast<void *>(data.data()), data.size());
        return data;
    }
    void restore(const std::vector<unsigned char> &data) {
        call(sparsec_restore, static_cast<const void *>(data.data()), data.size());
    }
    template <class T> const T *state(uint32_t index) const noexcept {
        return static_cast<const T *>(sparsec_state_data(get(), index));
    }

    int threads() const noexcept { return sparsec_threads(get()); }
    sparsec_context *get() const noexcept { return handle_.get(); }

private:
    explicit Context(sparsec_model *model) : model_(model) {}

    template <class Create> void create(Create function) {
        sparsec_context *context = nullptr;
        sparsec_error error;
        detail::check(function(&context, &error), error);
        handle_.reset(context);
    }

    template <class Function, class... Arguments> void call(Function function, Arguments... arguments) {
        sparsec_error error;
        detail::check(function(get(), arguments..., &error), error);
    }

    struct Free {
        void operator()(sparsec_context *context) const noexcept { sparsec_context_free(context); }
    };
    sparsec_model *model_;
    std::unique_ptr<sparsec_context, Free> handle_;
};

} // namespace sparsec

#endif
