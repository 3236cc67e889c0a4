%% @doc Stubs of the native library (`docs/native_messages.md'). The only module with NIFs.
%%
%% With `AGENT_SKIP_NIF=1' the library is not loaded and every function answers `{error, native_down}': a node that cannot load it
%% can still be started, and repaired from its shell.
-module(agent_native).

-export([abi_version/0]).
-export([runtime_start/1, runtime_stop/1]).
-export([store_start/3, store_stop/1, store_panic/1, store_write/3, store_read/3, store_memory/4, store_say/5]).
-export([providers_start/3, providers_stop/1, providers_panic/1, providers_info/1]).
-export([chat/4, embed/4, credit/3, cancel/2, set_endpoint/3]).
-export([budget_attach/1, budget_grant/3, budget_answer/4, budget_sums/3, budget_take/3]).
-export([http_start/4, http_stop/1]).
-export([grpc_start/7, grpc_stop/1, grpc_panic/1, grpc_credit/2, grpc_drain/1, grpc_reply/2]).
-export([remote_own/2, remote_want/2, remote_send/2, remote_close/1]).
-export([agent_new/3, agent_step/2, tool_call/2, task_encode/1, task_cache_key/3]).
-export([plan_open/4, plan_step/2, plan_executors/1, delegation/3, delegation_ends/1]).
-export([task_history/1, task_has_schema/1, task_trim/4, result_check/2, result_repaired/2, providers_window/2, providers_select/3]).
-export([wire_encode/2, wire_decode/2, agent_encode/1, agent_decode/1, uuid7/0]).

-export_type([runtime/0, store/0, providers/0, grpc/0, http/0, payload/0, agent/0, plan/0, token/0, remote/0]).

-nifs([abi_version/0, runtime_start/1, runtime_stop/1, store_start/3, store_stop/1, store_panic/1, store_write/3,
       store_read/3, store_memory/4, store_say/5, providers_start/3, providers_stop/1, providers_panic/1, providers_info/1,
       chat/4, embed/4, credit/3, cancel/2, set_endpoint/3, budget_attach/1, budget_grant/3, budget_answer/4, budget_sums/3, budget_take/3,
       http_start/4, http_stop/1, grpc_start/7, grpc_stop/1, grpc_panic/1, grpc_credit/2, grpc_drain/1, grpc_reply/2,
       remote_own/2, remote_want/2, remote_send/2, remote_close/1, agent_new/3,
       agent_step/2, plan_open/4, plan_step/2, plan_executors/1, delegation/3, delegation_ends/1,
       task_history/1, task_has_schema/1, task_trim/4, result_check/2, result_repaired/2, providers_window/2, providers_select/3,
       tool_call/2, task_encode/1, task_cache_key/3,
       wire_encode/2, wire_decode/2, agent_encode/1,
       agent_decode/1, uuid7/0]).
-on_load(load/0).

%% Another number only in the test that a library of another version is refused.
-ifndef(ABI).
-define(ABI, 1).
-endif.
-define(DOWN, erlang:nif_error(native_down)).

-type runtime() :: reference().
-type store() :: reference().
-type providers() :: reference().
-type grpc() :: reference().
-type http() :: reference().
-type payload() :: reference().
-type agent() :: reference().
-type plan() :: reference().
-type token() :: reference().
-type remote() :: reference().
-type started(T) :: {ok, T} | {error, agent_error:t() | native_down}.

%% An `on_load' that fails would end an embedded release at boot without a word: without the library the application decides.
-spec load() -> ok | {error, term()}.
load() ->
    case os:getenv("AGENT_SKIP_NIF") of
        "1" -> ok;
        _ -> erlang:load_nif(filename:join(code:priv_dir(agent_native), "agent_nif"), ?ABI)
    end.

%% @doc Version of the boundary.
-spec abi_version() -> integer() | {error, native_down}.
abi_version() -> down([]).
%% @doc Starts the tokio runtime.
-spec runtime_start(#{threads => pos_integer()}) -> started(runtime()).
runtime_start(Options) -> down(Options).
%% @doc Stops it; every open request gets its final message.
-spec runtime_stop(runtime()) -> ok | {error, native_down}.
runtime_stop(Runtime) -> down(Runtime).
%% @doc Opens the store; `ready' follows.
-spec store_start(runtime(), reference(), binary()) -> started(store()).
store_start(Runtime, Ref, Config) -> down({Runtime, Ref, Config}).
%% @doc Stops the store after what waits.
-spec store_stop(store()) -> ok | {error, native_down}.
store_stop(Store) -> down(Store).
%% @doc Makes the writer panic (`AGENT_FAULT_INJECTION=1').
-spec store_panic(store()) -> ok | error | {error, native_down}.
store_panic(Store) -> down(Store).
%% @doc Writes.
-spec store_write(store(), reference(), tuple() | recover) ->
    ok | {done, term()} | busy | {error, agent_error:t() | native_down}.
store_write(Store, Ref, Op) -> down({Store, Ref, Op}).
%% @doc Reads.
-spec store_read(store(), reference(), tuple()) -> ok | {error, agent_error:t() | native_down}.
store_read(Store, Ref, Op) -> down({Store, Ref, Op}).
%% @doc Text of a running attempt ahead of its batch, for whoever watches it now: `Offset' bytes into the attempt's text.
-spec store_memory(store(), reference(), Place :: map(), Payload :: binary()) ->
    ok | {done, binary()} | busy | {error, agent_error:t() | native_down}.
store_memory(Store, Ref, Place, Payload) -> down({Store, Ref, Place, Payload}).

-spec store_say(store(), TaskId :: binary(), Attempt :: pos_integer(), Offset :: non_neg_integer(), binary()) -> ok | {error, native_down}.
store_say(Store, TaskId, Attempt, Offset, Text) -> down({Store, TaskId, Attempt, Offset, Text}).
%% @doc Starts the providers; `ready' follows.
-spec providers_start(runtime(), reference(), binary()) -> started(providers()).
providers_start(Runtime, Ref, Config) -> down({Runtime, Ref, Config}).
%% @doc Stops them; open calls are aborted.
-spec providers_stop(providers()) -> ok | {error, native_down}.
providers_stop(Providers) -> down(Providers).
%% @doc Makes them panic (`AGENT_FAULT_INJECTION=1').
-spec providers_panic(providers()) -> ok | error | {error, native_down}.
providers_panic(Providers) -> down(Providers).
%% @doc Views of all providers.
-spec providers_info(providers()) -> [map()] | {error, native_down}.
providers_info(Providers) -> down(Providers).
%% @doc Starts a model call.
-spec chat(providers(), reference(), binary(), map()) -> ok | {done, map()} | busy | {error, agent_error:t() | native_down}.
chat(Providers, Ref, Request, Options) -> down({Providers, Ref, Request, Options}).
%% @doc Starts an embedding call.
-spec embed(providers(), reference(), binary(), map()) -> ok | busy | {error, agent_error:t() | native_down}.
embed(Providers, Ref, Request, Options) -> down({Providers, Ref, Request, Options}).
%% @doc Allows more pieces of a streamed call.
-spec credit(providers(), reference(), pos_integer()) -> ok | {error, native_down}.
credit(Providers, Ref, N) -> down({Providers, Ref, N}).
%% @doc Aborts a call.
-spec cancel(providers(), reference()) -> ok | {error, native_down}.
cancel(Providers, Ref) -> down({Providers, Ref}).
%% @doc Says where a provider is now.
-spec set_endpoint(providers(), binary(), map() | unavailable) -> ok | {error, native_down}.
set_endpoint(Providers, Name, Endpoint) -> down({Providers, Name, Endpoint}).
%% @doc The caller hears of wants from now on: `{agent_native, budget, want, #{tenant, id, needs}}'.
-spec budget_attach(providers()) -> ok | {error, native_down}.
budget_attach(Providers) -> down(Providers).
%% @doc Lends committed amounts, in pico-dollars.
-spec budget_grant(providers(), binary(), [{binary(), integer()}]) -> ok | {error, native_down}.
budget_grant(Providers, Tenant, Grants) -> down({Providers, Tenant, Grants}).
%% @doc Answers a want: its call looks again, or is refused.
-spec budget_answer(providers(), binary(), pos_integer(), ok | unavailable | map()) -> ok | {error, native_down}.
budget_answer(Providers, Tenant, Id, Answer) -> down({Providers, Tenant, Id, Answer}).
%% @doc Open leases of a tenant, `{Account, Open, Reserved, Idle}': all, or those that changed and those that are idle.
-spec budget_sums(providers(), binary(), all | changed) -> [{binary(), integer(), integer(), boolean()}] | {error, native_down}.
budget_sums(Providers, Tenant, Which) -> down({Providers, Tenant, Which}).
%% @doc Takes what is free out of a lease.
-spec budget_take(providers(), binary(), binary()) -> integer() | {error, native_down}.
budget_take(Providers, Tenant, Account) -> down({Providers, Tenant, Account}).
%% @doc Starts the HTTP listener; `ready' follows.
-spec http_start(runtime(), reference(), binary(), providers()) -> started(http()).
http_start(Runtime, Ref, Config, Providers) -> down({Runtime, Ref, Config, Providers}).
%% @doc Takes nothing more; answers under way are finished.
-spec http_stop(http()) -> ok | {error, native_down}.
http_stop(Http) -> down(Http).
%% @doc Starts the listener; `ready' follows.
-spec grpc_start(runtime(), reference(), binary(), store(), providers(), pid(), pos_integer()) -> started(grpc()).
grpc_start(Runtime, Ref, Config, Store, Providers, Ingress, Credit) ->
    down({Runtime, Ref, Config, Store, Providers, Ingress, Credit}).
%% @doc Stops the listener.
-spec grpc_stop(grpc()) -> ok | {error, native_down}.
grpc_stop(Grpc) -> down(Grpc).
%% @doc Makes it panic (`AGENT_FAULT_INJECTION=1').
-spec grpc_panic(grpc()) -> ok | error | {error, native_down}.
grpc_panic(Grpc) -> down(Grpc).
%% @doc Takes `N' more requests.
-spec grpc_credit(grpc(), integer()) -> ok | {error, native_down}.
grpc_credit(Grpc, N) -> down({Grpc, N}).
%% @doc Health checks say NOT_SERVING from now on.
-spec grpc_drain(grpc()) -> ok | {error, native_down}.
grpc_drain(Grpc) -> down(Grpc).
%% @doc Answers a request, once.
-spec grpc_reply(token(), term()) -> ok | {error, gone | native_down}.
grpc_reply(Token, Reply) -> down({Token, Reply}).
%% @doc Makes the caller the owner of an attached worker's stream.
-spec remote_own(remote(), reference()) -> ok | {error, native_down}.
remote_own(Remote, Ref) -> down({Remote, Ref}).
%% @doc Takes `N' more frames of it.
-spec remote_want(remote(), pos_integer()) -> ok | {error, native_down}.
remote_want(Remote, N) -> down({Remote, N}).
%% @doc Sends it a frame; never waits.
-spec remote_send(remote(), binary()) -> ok | busy | closed | {error, native_down}.
remote_send(Remote, Frame) -> down({Remote, Frame}).
%% @doc Ends the stream.
-spec remote_close(remote()) -> ok | {error, native_down}.
remote_close(Remote) -> down(Remote).
%% @doc Sets up the native agent.
-spec agent_new(payload(), binary(), map()) -> started(agent()).
agent_new(Payload, Agent, Options) -> down({Payload, Agent, Options}).
%% @doc One event in, effects out.
-spec agent_step(agent(), start | tuple()) -> {ok, [tuple()]} | {error, agent_error:t() | native_down}.
agent_step(Agent, Event) -> down({Agent, Event}).
%% @doc Sets up the machine of a plan with what earlier attempts have kept.
-spec plan_open(store(), reference(), payload(), map()) -> ok | {done, plan()} | {error, agent_error:t() | native_down}.
plan_open(Store, Ref, Payload, Options) -> down({Store, Ref, Payload, Options}).
%% @doc One event in, effects out.
-spec plan_step(plan(), go | tuple()) -> {ok, [term()]} | {error, agent_error:t() | native_down}.
plan_step(Plan, Event) -> down({Plan, Event}).
%% @doc What a plan would run on.
-spec plan_executors(payload()) -> [{Field :: binary(), Executor :: binary(), AgentId :: binary()}] | {error, native_down}.
plan_executors(Payload) -> down(Payload).
%% @doc Runs an engine tool.
-spec tool_call(binary(), binary()) -> {ok, binary()} | {tool_error, binary()} | {error, unknown_tool | native_down}.
tool_call(Name, Arguments) -> down({Name, Arguments}).
%% @doc Definitions of engine tools.
%% @doc A task from the shell, validated like a request.
-spec task_encode(map()) -> {ok, map(), payload()} | {error, agent_error:t() | native_down}.
task_encode(Map) -> down(Map).
%% @doc What the whole-task cache may do with a task: whether an answer may be given again, its key, and the tools whose use does not
%% forbid to keep one; or the name of a tool that may have an effect.
-spec task_cache_key(payload(), AgentTools :: [binary()], Around :: [binary()]) ->
    undefined | {ok, Read :: boolean(), Key :: binary(), Tools :: [binary()]} | {error, Tool :: binary() | native_down}.
task_cache_key(Payload, AgentTools, Around) -> down({Payload, AgentTools, Around}).
%% @doc Messages of the conversation that a task brings.
-spec task_history(payload()) -> non_neg_integer() | {error, native_down}.
task_history(Payload) -> down(Payload).
%% @doc Whether a task says which form its answer shall have.
-spec task_has_schema(payload()) -> boolean() | {error, native_down}.
task_has_schema(Payload) -> down(Payload).
%% @doc The task with a conversation that a model with a window of so many tokens can read; `Percent' of what is left of it.
-spec task_trim(payload(), Agent :: binary(), Window :: non_neg_integer(), Percent :: 1..100) ->
    same | {trimmed, payload(), LeftOut :: pos_integer(), Of :: pos_integer()} | {error, native_down}.
task_trim(Payload, Agent, Window, Percent) -> down({Payload, Agent, Window, Percent}).
%% @doc Holds an encoded answer against the schema of the task: as it is, with its data read, or the task of its repair.
-spec result_check(payload(), binary()) ->
    fits | {read, binary()} | {misfit, Repair :: payload(), Why :: binary()} | {error, agent_error:t() | native_down}.
result_check(Payload, Result) -> down({Payload, Result}).
%% @doc An encoded answer with what its repair says.
-spec result_repaired(binary(), binary()) -> binary() | {error, native_down}.
result_repaired(Result, By) -> down({Result, By}).
%% @doc The window of a model or alias in tokens; 0: nobody has said it.
-spec providers_window(providers(), binary()) -> non_neg_integer() | {error, native_down}.
providers_window(Providers, Model) -> down({Providers, Model}).
%% @doc Who would answer a call under the rules of a task (an encoded `CallPolicy'), without asking anybody: encoded request and answer.
-spec providers_select(providers(), binary(), Rules :: binary()) -> {ok, binary()} | {error, agent_error:t() | native_down}.
providers_select(Providers, Request, Rules) -> down({Providers, Request, Rules}).
%% @doc The plan of a worker's request for subtasks; `Place' names the step that asks, empty for the task itself.
-spec delegation(payload(), binary(), Place :: binary()) -> {ok, Header :: map(), payload()} | {error, agent_error:t() | native_down}.
delegation(Payload, Request, Place) -> down({Payload, Request, Place}).
%% @doc What the worker is told of the steps of such a plan.
-spec delegation_ends(plan()) -> binary() | {error, agent_error:t() | native_down}.
delegation_ends(Plan) -> down(Plan).
%% @doc Payload of a worker frame.
-spec wire_encode(atom(), map()) -> binary().
wire_encode(Kind, Map) -> down({Kind, Map}).
%% @doc Map of a worker frame's payload.
-spec wire_decode(atom(), binary()) -> {ok, map()} | {error, agent_error:t() | native_down}.
wire_decode(Kind, Payload) -> down({Kind, Payload}).
%% @doc Encodes an agent.
-spec agent_encode(map()) -> binary() | {error, native_down}.
agent_encode(Map) -> down(Map).
%% @doc Decodes an agent.
-spec agent_decode(binary()) -> {ok, map()} | {error, agent_error:t() | native_down}.
agent_decode(Data) -> down(Data).
%% @doc Encodes a result of our own.
%% @doc A new UUIDv7.
-spec uuid7() -> binary().
uuid7() -> down([]).

%% What a call gives while the library is not loaded. Opaque to Dialyzer, which would else see only this clause.
-spec down(term()) -> no_return() | term().
down(_Args) ->
    case os:getenv("AGENT_SKIP_NIF") of
        "1" -> {error, native_down};
        _ -> ?DOWN
    end.
