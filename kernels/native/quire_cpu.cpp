// What Python calls, by `kernels.native.library`.

#include "decoder.h"

namespace {

struct Engine {
    explicit Engine(int threads) : team(threads) {}
    quire::Team team;
    quire::Workspace space;
};

} // namespace

using namespace quire;

extern "C" {

Engine* quire_engine_new(int32_t threads) { return new Engine(threads); }

void quire_engine_delete(Engine* engine) { delete engine; }

void quire_engine_use(Engine* engine, int32_t threads) { engine->team.use(threads); }

void quire_layers(Engine* engine, const QuireDecoder* decoder, const QuireStep* step,
                  const QuireCache* cache, float* stream) {
    Pass(engine->team, *decoder, engine->space).layers(*step, *cache, stream);
}

void quire_norm(Engine* engine, const QuireDecoder* decoder, float* hidden, int64_t count) {
    Pass(engine->team, *decoder, engine->space).norm(hidden, count);
}

void quire_head(Engine* engine, const QuireDecoder* decoder, const float* hidden,
                const int64_t* rows, int64_t count, int32_t is_normed, float* logits) {
    Pass(engine->team, *decoder, engine->space).head(hidden, rows, count, is_normed, logits);
}
}
