%% @doc How much each tenant may have under way: a counter per tenant in an ETS table, checked before the commit.
%%
%% Keys are compared in Rust, by their SHA-256; here a tenant is only a name.
-module(tenant_registry).
-behaviour(gen_server).

%% API
-export([start_link/0]).
-export([enter/1]).
-export([leave/1]).
-export([counts/0]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, format_status/1]).

%% Requests of one tenant between their arrival and their commit.
-define(MAX_PENDING, 5000).

%% @doc Starts the owner of the table.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Takes a place for a request of a tenant.
-spec enter(binary()) -> ok | {error, agent_error:t()}.
enter(Tenant) ->
    Max = agent_config:get([tenants, Tenant, max_pending], ?MAX_PENDING),
    case ets:update_counter(?MODULE, Tenant, 1, {Tenant, 0}) of
        N when N =< Max ->
            ok;
        N ->
            leave(Tenant),
            Error = agent_error:new(rate_limited, <<"too many requests of the tenant are under way">>,
                                    #{<<"limit">> => <<"tenant.max_pending">>, <<"value">> => N}),
            {error, Error#{retry_after_ms => 50}}
    end.

%% @doc Gives the place back.
-spec leave(binary()) -> ok.
leave(Tenant) ->
    _ = ets:update_counter(?MODULE, Tenant, {2, -1, 0, 0}, {Tenant, 0}),
    ok.

%% @doc Requests under way by tenant.
-spec counts() -> #{binary() => non_neg_integer()}.
counts() ->
    maps:from_list(ets:tab2list(?MODULE)).

-spec init([]) -> {ok, []}.
init([]) ->
    ?MODULE = ets:new(?MODULE, [named_table, public, {write_concurrency, true}]),
    {ok, []}.

-spec handle_call(term(), gen_server:from(), []) -> {reply, ok, []}.
handle_call(_, _, S) ->
    {reply, ok, S}.

-spec handle_cast(term(), []) -> {noreply, []}.
handle_cast(_, S) ->
    {noreply, S}.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.
