%% @doc Takes requests from the gRPC subsystem, a bounded number at a time, each in a process of its own.
%%
%% The credit that was granted is the bound: Rust refuses at once beyond it. A request process that dies drops its token, and the client
%% hears that the outcome is not known.
-module(ingress).
-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/0]).
-export([first_credit/0]).
-export([open/1]).
-export([shut/0]).
-export([close/0]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

%% Requests that may be under way between Rust and here.
-define(CREDIT, 2000).
%% Given back in lumps, so that a request costs no call of its own.
-define(LUMP, 50).
%% What a request makes in its life fits without a garbage collection.
-define(REQUEST_HEAP_WORDS, 1500).

-record(ingress, {grpc = none :: none | reference(), owed = 0 :: non_neg_integer(), open = true :: boolean(),
                  strangers = 0 :: non_neg_integer()}).

%% @doc Starts the ingress. It takes requests at once: whoever sees the port open is served.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Requests that a new listener may send before more is granted.
-spec first_credit() -> pos_integer().
first_credit() ->
    ?CREDIT.

%% @doc The listener is up: gives back what it has used so far.
-spec open(reference()) -> ok.
open(Grpc) ->
    gen_server:call(?MODULE, {open, Grpc}).

%% @doc The listener is gone, and its credit with it.
-spec shut() -> ok.
shut() ->
    gen_server:call(?MODULE, shut).

%% @doc No more requests: draining.
-spec close() -> ok.
close() ->
    gen_server:call(?MODULE, close).

-spec init([]) -> {ok, #ingress{}}.
init([]) ->
    {ok, #ingress{}}.

-spec handle_call({open, reference()} | shut | close, gen_server:from(), #ingress{}) -> {reply, ok, #ingress{}}.
handle_call({open, Grpc}, _From, S = #ingress{owed = Owed}) ->
    _ = agent_native:grpc_credit(Grpc, Owed),
    {reply, ok, S#ingress{grpc = Grpc, owed = 0, open = true}};
handle_call(shut, _From, S) ->
    {reply, ok, S#ingress{grpc = none, owed = 0}};
handle_call(close, _From, S) ->
    {reply, ok, S#ingress{open = false}}.

-spec handle_cast(term(), #ingress{}) -> {noreply, #ingress{}}.
handle_cast(_, S) ->
    {noreply, S}.

-spec handle_info(term(), #ingress{}) -> {noreply, #ingress{}}.
handle_info({agent_native, grpc, request, #{token := Token, method := submit_task}}, S = #ingress{open = false}) ->
    Error = agent_error:new(draining, <<"the node is being stopped">>),
    _ = agent_native:grpc_reply(Token, {error, Error#{retry_after_ms => 1000}}),
    {noreply, give_back(S)};
handle_info({agent_native, grpc, attach_worker, Remote}, S = #ingress{open = Open}) ->
    case Open of
        true -> framework_adapter_pool:attach(Remote);
        false -> _ = agent_native:remote_close(Remote), ok
    end,
    {noreply, give_back(S)};
handle_info({agent_native, grpc, request, Request}, S) ->
    _ = spawn_opt(gateway_request, handle, [Request], [{min_heap_size, ?REQUEST_HEAP_WORDS}]),
    {noreply, give_back(S)};
handle_info(_, S = #ingress{strangers = N}) ->
    _ = [?LOG_WARNING(#{msg => unexpected_message, process => ingress}, #{domain => [agent, gateway]}) || N =:= 0],
    {noreply, S#ingress{strangers = N + 1}}.

-spec give_back(#ingress{}) -> #ingress{}.
give_back(S = #ingress{grpc = Grpc, owed = N}) when Grpc =:= none; N + 1 < ?LUMP ->
    S#ingress{owed = N + 1};
give_back(S = #ingress{grpc = Grpc}) ->
    _ = agent_native:grpc_credit(Grpc, ?LUMP),
    S#ingress{owed = 0}.

%% Requests hold prompts: only their number is shown.
-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    maps:map(fun(message, _) -> request; (messages, M) -> [{count, length(M)}]; (_, Other) -> Other end, Status).
